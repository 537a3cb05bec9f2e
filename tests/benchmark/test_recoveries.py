"""What the harness tells a recovery, and what it keeps from it; recoveries resume with the run."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msbench.benchmark.spec import RunSpec, resolve
from msbench.components import load_class, names
from msbench.errors import Interrupted, UsageError
from msbench.leaderboard.record import Record
from msbench.leaderboard.scoring import UPPER_BOUND, cells, worst_cases
from msbench.leaderboard.store import Store

Steal = Callable[..., Record]
Numbers = Callable[[Record], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("brief")

SPY = '''
from dataclasses import dataclass
from typing import ClassVar

from msbench import Recovery, RecoveryTraits

SEEN = {}


@dataclass(kw_only=True)
class Spy(Recovery):
    """Notes what it is told."""

    traits: ClassVar[RecoveryTraits] = RecoveryTraits(knows=("defense", "clone"))

    def prepare(self, context):
        super().prepare(context)
        self.defense = context.known_defense()

    def student(self, network, seed):
        SEEN.setdefault("students", []).append(seed)
        return network

    def query(self, images):
        released = self.victim.query(images)
        SEEN.setdefault("released", released)
        SEEN.setdefault("rebuilt", self.defense.release(released, images))
        SEEN.setdefault("clone", self.context.clone()(images))
        SEEN.setdefault("clean", self.context.clean)
        return released


@dataclass(kw_only=True)
class Peek(Recovery):
    """Is told too much for its name."""

    traits: ClassVar[RecoveryTraits] = RecoveryTraits(knows=("clean answers",))

    def query(self, images):
        self.victim.query(images)
        return self.context.clean(images)
'''

UNDECLARED = '''
from msbench import Recovery


class Nosy(Recovery):
    """Asks for what it does not declare to know."""

    what = "defense"

    def prepare(self, context):
        super().prepare(context)
        context.known_defense() if self.what == "defense" else context.clone()

    def query(self, images):
        return self.victim.query(images)


class NosyForTheClone(Nosy):
    what = "clone"
'''

QUICK = {
    "bayes": "bayes:rows=2000",
    "ddae": "ddae:rows=300,shadows=1,epochs=1",
    "oracle_bayes": "oracle_bayes:candidates=4",
    "oracle_ddae": "oracle_ddae:updates=20",
}
SMALL = RunSpec(attack="dualstudent:batch=8,width=8,ema_every=3", budget=240)


@pytest.fixture
def spies(tmp_path: Path) -> Path:
    file = tmp_path / "spies.py"
    file.write_text(SPY)
    return file


@pytest.mark.parametrize(("recovery", "what"), [("Nosy", "defense"), ("NosyForTheClone", "clone")])
def test_what_a_recovery_does_not_declare_to_know_is_withheld(
    steal: Steal, tmp_path: Path, recovery: str, what: str
) -> None:
    file = tmp_path / "nosy.py"
    file.write_text(UNDECLARED)
    record = steal(replace(SMALL, recovery=f"{file}:{recovery}"))
    assert record.status == "failed" and record.error is not None
    assert f"add '{what}' to its traits' knows" in record.error.message


def test_the_harness_rebuilds_the_defense_with_a_seed_of_its_own(steal: Steal, spies: Path) -> None:
    record = steal(replace(SMALL, recovery=f"{spies}:Spy", defense="noise:per_input=true,scale=0.3+rounding"))
    assert record.status == "done"
    seen = sys.modules[load_class("recovery", f"{spies}:Spy").__module__].SEEN  # type: ignore[attr-defined]
    assert seen["clean"] is None
    assert seen["clone"].shape == seen["released"].shape
    assert len(set(seen["students"])) == len(seen["students"]) == 2
    assert torch.equal(seen["rebuilt"], seen["rebuilt"].clamp(0, 1))
    assert not torch.allclose(seen["rebuilt"], seen["released"], atol=0.05)


def test_who_is_told_clean_answers_must_be_called_an_oracle(spies: Path) -> None:
    with pytest.raises(UsageError, match="oracle_"):
        resolve(replace(SMALL, recovery=f"{spies}:Peek"))


def test_an_oracle_runs_and_is_never_ranked(steal: Steal) -> None:
    records = [steal(replace(SMALL, recovery=recovery)) for recovery in ("none", QUICK["oracle_bayes"])]
    assert [record.status for record in records] == ["done", "done"]
    known = cells(records)
    assert [cell.attack for cell in known if not cell.ranked] == ["dualstudent+oracle_bayes"]
    assert {cell.note for cell in known if not cell.ranked} == {UPPER_BOUND}
    assert {cell.attack for cell in worst_cases(known).values()} == {"dualstudent"}


@pytest.mark.parametrize("recovery", names("recovery"))
def test_every_recovery_continues_as_if_nothing_had_happened(
    steal: Steal, store: Store, tmp_path: Path, stop_after: Any, numbers: Numbers, recovery: str
) -> None:
    spec = replace(SMALL, recovery=QUICK.get(recovery, recovery), defense="topk:k=3")
    whole = steal(spec, store=Store(tmp_path / "whole"))
    assert whole.status == "done", whole.error
    with pytest.raises(Interrupted):
        steal(spec, stop=stop_after(1))
    record = steal(spec)
    assert record.timing.resumed == 1
    assert numbers(record) == numbers(whole)
