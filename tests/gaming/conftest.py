"""Real runs on the digits, in a second each."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msbench.benchmark import evaluation, runner, session
from msbench.benchmark.spec import RunSpec
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store
from msbench.targets import training

Steal = Callable[..., Record]


@pytest.fixture
def steal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steal:
    """Runs an attack against a defense, or a cheat by its name, and returns the record."""
    monkeypatch.setitem(training.RECIPES, "digits", replace(training.RECIPES["digits"], epochs=20))
    monkeypatch.setattr(evaluation, "TRANSFER_IMAGES", 32)
    monkeypatch.setattr(evaluation, "REPEATS", 1)
    monkeypatch.setattr(session, "unrelated", lambda *_: None)
    cheats = Path(__file__).with_name("cheats.py")

    def run(defense: str, attack: str = "random_noise:batch=64", budget: int = 1_200, **changes: str) -> Record:
        known = defense if defense[0].islower() else f"{cheats}:{defense}"
        spec = RunSpec(defense=known, attack=attack, budget=budget, **changes)
        return runner.run(spec, store=Store(tmp_path / "runs"), device="cpu", download=False)

    return run
