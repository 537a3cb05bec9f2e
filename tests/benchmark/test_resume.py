"""A run that is interrupted and continued ends in the same record as one that is not, bit for bit apart from times."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msbench.benchmark.spec import RunSpec, resolve
from msbench.components import load_class, names
from msbench.errors import Interrupted, StoreError
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store

Steal = Callable[..., Record]
Numbers = Callable[[Record], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("brief")

QUICK = {
    "activethief": "activethief:epochs=2,strategy=k_center,rounds=10",
    "copycat": "copycat:epochs=2,query_batch=40",
    "dfme": "dfme:batch=5,width=8",
    "dfms_hl": "dfms_hl:proxy=64,gan_epochs=1,diversity_epochs=1,epochs=1,batch=16,width=8",
    "dfms_sl": "dfms_sl:proxy=64,gan_epochs=1,diversity_epochs=1,epochs=1,batch=16,width=8",
    "disguide": "disguide:batch=16,width=8",
    "dualstudent": "dualstudent:batch=8,width=8,ema_every=3",
    "es_attack": "es_attack:images=16,synthesis_steps=2,epochs=1",
    "ideal": "ideal:images=16,generator_steps=1,width=8",
    "jbda": "jbda:seeds=20,rounds=none,query_batch=40,round_epochs=1,epochs=1",
    "jbda_tr": "jbda_tr:seeds=20,query_batch=40,round_epochs=1,epochs=1",
    "knockoff": "knockoff:epochs=2,query_batch=40",
    "qedg": "qedg:images=16,generator_steps=1,round_epochs=1,epochs=1,width=8",
    "random_labels": "random_labels:epochs=2,query_batch=40",
    "maze": "maze:batch=2,width=8",
    "maze_pd": "maze_pd:batch=2,seeds=20,width=8",
    "random_noise": "random_noise:batch=40,images=smooth",
    "true_data": "true_data:epochs=2,query_batch=40",
}
"""Settings that take some steps to spend a budget of hundreds; other attacks run with their defaults."""
NOISE = RunSpec(attack=QUICK["random_noise"], defense="noise", budget=640)
MISBEHAVING = Path(__file__).with_name("misbehaving.py")


def small_pool(attack: str) -> str | None:
    """A pool that loads faster than the declared one, for attacks that take any."""
    return "digits" if load_class("attack", attack).traits.pool == "unrelated" else None  # type: ignore[attr-defined]


def interrupted(steal: Steal, store: Store, spec: RunSpec, stop: Any) -> Record:
    """Run a spec until ``stop`` is set, check what is left behind, and return that."""
    with pytest.raises(Interrupted, match="state saved"):
        steal(spec, stop=stop)
    (record,) = store.records()
    assert record.status == "interrupted"
    assert record.budget.stop == "interrupted"
    assert record.budget.spent < record.budget.limit
    assert (record.stolen, record.paid, record.error) == (None, None, None)
    state = torch.load(store.state_path(record.run_id), weights_only=True)
    assert state["box"]["spent"] == record.budget.spent
    return record


@pytest.mark.parametrize("attack", names("attack"))
def test_every_attack_continues_as_if_nothing_had_happened(
    steal: Steal, store: Store, tmp_path: Path, stop_after: Any, numbers: Numbers, attack: str
) -> None:
    # Repeats are charged, fresh noise draws from the defense's generator: all of it must be put back.
    spec = replace(NOISE, attack=QUICK.get(attack, attack), recovery="averaging:repeats=2", pool=small_pool(attack))
    whole = steal(spec, store=Store(tmp_path / "whole"))
    assert (whole.status, whole.timing.resumed) == ("done", 0)
    spent = [interrupted(steal, store, spec, stop_after(steps)).budget.spent for steps in (1, 3)]
    assert 0 < spent[0] < spent[1]
    record = steal(spec)
    assert record.timing.resumed == 2
    assert numbers(record) == numbers(whole)
    assert not store.state_path(record.run_id).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": QUICK["dualstudent"], "recovery": "argmax"},
        {"attack": f"{MISBEHAVING}:GloballyRandom", "defense": "reverse_sigmoid+noise:distribution=laplace"},
        {"defense": f"{MISBEHAVING}:Patient"},  # which knows the attack's account again
    ],
)
def test_stopping_after_every_single_step_changes_nothing(
    steal: Steal, store: Store, tmp_path: Path, stop_after: Any, numbers: Numbers, changes: dict[str, str]
) -> None:
    spec = replace(NOISE, budget=240, **changes)
    whole = steal(spec, store=Store(tmp_path / "whole"))
    stops = 0
    while True:
        try:
            record = steal(spec, stop=stop_after(1))
        except Interrupted:
            stops += 1
            assert stops < 10
        else:
            break
    assert stops == record.timing.resumed == 5  # forty queries a step; nothing is left to interrupt after the last
    assert numbers(record) == numbers(whole)


def test_times_are_summed_over_sessions(steal: Steal, store: Store, stop_after: Any) -> None:
    first = interrupted(steal, store, NOISE, stop_after(8))
    record = steal(NOISE)
    assert record.timing.created_utc == first.timing.created_utc
    assert record.timing.attack > first.timing.attack > 0
    assert record.timing.evaluation > first.timing.evaluation > 0
    assert record.timing.wall > first.timing.wall


def test_state_is_saved_as_often_as_asked_for(
    steal: Steal, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = replace(NOISE, attack=f"{MISBEHAVING}:Crashes:after=280", defense="none")
    at = {}
    for seconds in ("0", "3600"):
        monkeypatch.setenv("MSBENCH_SAVE_SECONDS", seconds)
        record = steal(spec, store=Store(tmp_path / seconds))
        assert (record.status, record.budget.spent) == ("failed", 280)
        state = torch.load(Store(tmp_path / seconds).state_path(record.run_id), weights_only=True)
        at[seconds] = state["box"]["spent"]
    assert at == {"0": 280, "3600": 160}  # after the last step, and at the last milestone


def test_a_state_holds_no_code(steal: Steal, store: Store, stop_after: Any) -> None:
    record = interrupted(steal, store, replace(NOISE, attack=QUICK["dualstudent"]), stop_after(2))
    state = torch.load(store.state_path(record.run_id), weights_only=True)  # refuses everything but plain data
    assert state.keys() == {
        *("format", "target", "random", "tally"),
        *("attack", "defense", "recovery", "box", "reliability", "traffic"),
    }


def test_nothing_is_left_to_interrupt_once_the_budget_is_spent(steal: Steal, stop_after: Any) -> None:
    record = steal(NOISE, stop=stop_after(16))
    assert record.status == "done"


def test_force_starts_over(steal: Steal, store: Store, stop_after: Any, ear: Any) -> None:
    interrupted(steal, store, NOISE, stop_after(3))
    record = steal(NOISE, force=True, listener=ear)
    assert (record.status, record.timing.resumed) == ("done", 0)
    assert not any("continuing" in phase for phase in ear.phases)
    assert list((store.root / ".states").iterdir()) == []


@pytest.mark.parametrize("already", ["nothing", "begun", "done"])
def test_what_force_began_is_continued_by_the_same_command(
    steal: Steal, store: Store, tmp_path: Path, stop_after: Any, numbers: Numbers, already: str
) -> None:
    if already == "begun":
        interrupted(steal, store, NOISE, stop_after(8))
    elif already == "done":
        steal(NOISE)
    for _ in range(2):
        with pytest.raises(Interrupted):
            steal(NOISE, force=True, stop=stop_after(3))
    record = steal(NOISE, force=True)
    assert record.timing.resumed == 2
    assert numbers(record) == numbers(steal(NOISE, store=Store(tmp_path / "whole")))
    assert list((store.root / ".states").iterdir()) == []
    assert steal(NOISE, force=True).timing.resumed == 0  # what is done is done again


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no state at all")
    elif how == "list":
        torch.save([1, 2, 3], path)
    else:
        state = torch.load(path, weights_only=True)
        torch.save(state | ({"target": "00" * 32} if how == "target" else {"format": 0}), path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "cannot be read"),
        ("empty", "cannot be read"),
        ("text", "cannot be read"),
        ("list", "is of another target or another version"),
        ("target", "is of another target or another version"),
        ("format", "is of another target or another version"),
    ],
)
def test_a_state_of_no_use_is_a_warning_and_the_run_starts_over(
    steal: Steal, store: Store, stop_after: Any, ear: Any, how: str, words: str
) -> None:
    spec = replace(NOISE, budget=80)
    interrupted(steal, store, spec, stop_after(1))
    damage(store.state_path(resolve(spec).run_id), how)
    record = steal(spec, listener=ear)
    assert (record.status, record.timing.resumed, record.budget.spent) == ("done", 0, 80)
    assert [point.queries for point in record.curve] == [40, 80]
    (warning,) = ear.warnings
    assert words in warning and warning.endswith(": starting over")


def test_a_state_that_does_not_fit_the_code_is_an_error_with_the_way_out(
    steal: Steal, store: Store, stop_after: Any
) -> None:
    interrupted(steal, store, NOISE, stop_after(1))
    path = store.state_path(resolve(NOISE).run_id)
    state = torch.load(path, weights_only=True)
    state["attack"]["pupils"]["networks"][0].popitem()
    torch.save(state, path)
    with pytest.raises(StoreError, match=r"does not fit this code .*delete it to start over"):
        steal(NOISE)
    path.unlink()
    assert steal(NOISE).status == "done"
