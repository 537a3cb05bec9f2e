"""Runs of the real benchmark in seconds, and a store of the test's own."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msbench.benchmark import evaluation, runner, session
from msbench.benchmark.listener import Listener
from msbench.benchmark.spec import RunSpec
from msbench.leaderboard.record import CurvePoint, Record
from msbench.leaderboard.store import Store

UNTRAINED = "digits/lenet5:hidden=32"
"""A target that does not come with msbench."""


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images and timings in the measurements that take longest, and no unrelated images."""
    monkeypatch.setattr(evaluation, "TRANSFER_IMAGES", 32)
    monkeypatch.setattr(evaluation, "REPEATS", 1)
    monkeypatch.setattr(session, "unrelated", lambda *_: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "runs")


@dataclass
class Ear(Listener):
    """Remembers what it was told."""

    phases: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    points: list[CurvePoint] = field(default_factory=list)

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def milestone(self, point: CurvePoint) -> None:
        self.points.append(point)


class StopAfter(threading.Event):
    """Asks a run to stop after so many steps; the runner looks once a step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.fixture
def ear() -> Ear:
    """A listener."""
    return Ear()


@pytest.fixture
def stop_after() -> type[StopAfter]:
    """What to stop runs with: ``stop_after(3)`` is an event that is set after three steps."""
    return StopAfter


Steal = Callable[..., Record]


@pytest.fixture
def steal(store: Store, tmp_path: Path) -> Steal:
    """Runs a spec on the CPU, in the test's store, without downloads."""

    def run(spec: RunSpec, **options: Any) -> Record:
        places = {"store": store, "data_dir": tmp_path / "data", "device": "cpu", "download": False}
        return runner.run(spec, **places | options)

    return run


@pytest.fixture
def numbers() -> Callable[[Record], dict[str, Any]]:
    """All of a record that equal runs have in common: not the time it took, nor what was committed meanwhile."""

    def everything_else(record: Record) -> dict[str, Any]:
        data = record.model_dump(mode="json", exclude={"timing": True, "env": {"commit", "dirty"}})
        assert "timing" not in data
        return data

    return everything_else
