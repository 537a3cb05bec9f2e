"""Runs that take turns in one process end in the same records as runs one after the other."""

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from msbench.benchmark.runner import run, run_in_turns
from msbench.benchmark.spec import RunSpec
from msbench.errors import Interrupted, UsageError
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store

from .test_resume import MISBEHAVING, QUICK

Numbers = Callable[[Record], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("brief")

DUAL = RunSpec(attack=QUICK["dualstudent"], defense="noise", budget=400)
NOISE = RunSpec(attack=QUICK["random_noise"], budget=640)
CARELESS = RunSpec(attack=f"{MISBEHAVING}:Careless", budget=200)


def records(specs: list[RunSpec], folder: Path) -> list[Record]:
    outcomes = run_in_turns(specs, store=Store(folder), download=False, device="cpu")
    assert all(isinstance(outcome, Record) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def test_records_are_those_of_runs_one_after_the_other(tmp_path: Path, numbers: Numbers) -> None:
    specs = [DUAL, replace(DUAL, seed=1, defense_seed=1), NOISE, CARELESS, replace(CARELESS, seed=1)]
    before = torch.get_rng_state()
    together = records(specs, tmp_path / "together")
    assert torch.equal(torch.get_rng_state(), before)
    alone = [run(spec, store=Store(tmp_path / "alone"), download=False, device="cpu") for spec in specs]
    assert [numbers(record) for record in together] == [numbers(record) for record in alone]
    assert len({str(numbers(record)["diagnostics"]) for record in together}) == len(specs)


def test_they_do_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msbench.attacks.random_noise import RandomNoise

    seen: list[int] = []
    original = RandomNoise.step

    def step(self: RandomNoise) -> Any:
        seen.append(id(self))
        return original(self)

    monkeypatch.setattr(RandomNoise, "step", step)
    records([NOISE, replace(NOISE, seed=1)], tmp_path)
    assert len(set(seen)) == 2
    assert all(one != other for one, other in pairwise(seen))


def test_what_befalls_one_leaves_the_others_alone(tmp_path: Path) -> None:
    failing = RunSpec(attack=f"{MISBEHAVING}:Crashes", budget=200)
    impossible = RunSpec(attack=f"{MISBEHAVING}:Particular", budget=200)
    outcomes = run_in_turns([failing, impossible, NOISE], store=Store(tmp_path), download=False, device="cpu")
    failed, unusable, done = outcomes
    assert isinstance(failed, Record)
    assert failed.status == "failed"
    assert isinstance(unusable, UsageError)
    assert isinstance(done, Record)
    assert done.status == "done"


def test_all_are_stopped_with_their_state_saved(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    specs = [NOISE, replace(NOISE, seed=1)]
    outcomes = run_in_turns(specs, store=Store(tmp_path), download=False, device="cpu", stop=stop)
    assert all(isinstance(outcome, Interrupted) for outcome in outcomes)
    assert all(record.budget.spent > 0 for record in Store(tmp_path).records())
    assert len(list((tmp_path / ".states").iterdir())) == 2
