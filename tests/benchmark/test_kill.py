"""Real processes, killed or stopped and started again by the same command, end in the uninterrupted record."""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msbench.benchmark import runner
from msbench.benchmark.spec import RunSpec
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store, load, record_files

from .conftest import UNTRAINED

Numbers = Callable[[Record], dict[str, Any]]

PROGRAM = (sys.executable, "-c", "from msbench.benchmark.cli.main import main; main()")
"""The console script without its file, which need not be where the interpreter is."""
PATIENCE = 600
"""Seconds that a process may take for anything; compiling alone takes a minute or more."""


@dataclass
class Command:
    """One ``msbench run`` that can be started, stopped and started again."""

    spec: RunSpec
    store: Store
    home: Path
    flags: tuple[str, ...] = ()
    sessions: int = field(default=0, init=False)

    @property
    def state(self) -> Path | None:
        """The saved state, if there is one."""
        return next(self.store.root.glob(".states/*.pt"), None)

    @property
    def saved_queries(self) -> int:
        """Queries spent in that state; 0 without one."""
        try:
            queries: int = torch.load(self.state, weights_only=True)["box"]["spent"] if self.state else 0
        except FileNotFoundError:  # the run has just ended
            queries = 0
        return queries

    @property
    def log(self) -> str:
        """What the last session said on stderr."""
        return (self.home / f"stderr-{self.sessions}").read_text()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, as a process of its own."""
        self.sessions += 1
        asked = {
            "target": self.spec.target,
            "attack": self.spec.attack,
            "defense": self.spec.defense,
            "recovery": self.spec.recovery,
        }
        asked |= {"budget": self.spec.budget, "seed": self.spec.seed, "store": self.store.root}
        options = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
        settings = {"MSBENCH_HOME": self.home, "MSBENCH_SAVE_SECONDS": 0, "MSBENCH_DEVICE": "cpu"}
        settings["OMP_NUM_THREADS"] = torch.get_num_threads()  # sums may depend on how they are shared out
        with (self.home / f"stderr-{self.sessions}").open("wb") as log:
            return subprocess.Popen(
                [*PROGRAM, "run", *options, *self.flags],
                env=os.environ | {name: str(value) for name, value in settings.items()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def start_and_wait_for_progress(self) -> subprocess.Popen[bytes]:
        """Start it, and return as soon as it has saved state of its own."""
        before = self.saved_queries
        process = self.start()
        self.wait_for(before + 1, process)
        return process

    def wait_for(self, queries: float, process: subprocess.Popen[bytes]) -> None:
        """Return as soon as the saved state has spent so many queries."""
        deadline = time.monotonic() + PATIENCE
        while self.saved_queries < queries:
            assert process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def finish(self) -> Record:
        """Start it, let it come to its end, and return the only record there is."""
        process = self.start()
        assert process.wait(PATIENCE) == 0, self.log
        (record,) = self.records()
        assert self.state is None
        return record

    def records(self) -> list[Record]:
        """All records; a truncated or otherwise unreadable one raises."""
        return [load(path) for path in record_files(self.store.root)]


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    """A run of some seconds that everything random takes part in."""
    return RunSpec(
        attack="dualstudent:batch=16,width=8",
        defense="noise",
        recovery="averaging:repeats=2",
        budget=4_800,
    )


@pytest.fixture(scope="module")
def whole(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of the run that nobody interrupts, in this process."""
    folder = tmp_path_factory.mktemp("whole")
    record = runner.run(spec, store=Store(folder), device="cpu", download=False)
    assert record.status == "done"
    return record


@pytest.fixture
def command(spec: RunSpec, store: Store, tmp_path: Path) -> Command:
    """That run as a command, with a store and a cache of its own."""
    return Command(spec, store, tmp_path)


def stop(process: subprocess.Popen[bytes], number: signal.Signals, command: Command) -> None:
    """Ask a process to end, and check what it says and leaves behind."""
    process.send_signal(number)
    assert process.wait(PATIENCE) == 130, command.log
    assert "the same command continues" in command.log
    assert "Traceback" not in command.log
    (record,) = command.records()
    assert record.status == "interrupted"
    assert record.budget.spent == command.saved_queries


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that is still running, without a chance to clean up."""
    assert process.poll() is None, "it ended before it could be killed: the run is too short"
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_a_run_that_is_killed_and_then_asked_to_stop_ends_in_the_same_record(
    command: Command, whole: Record, numbers: Numbers
) -> None:
    moments = random.Random(0)
    spent = [0]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = command.start_and_wait_for_progress()
        time.sleep(moments.uniform(0, 0.05))
        if number == signal.SIGKILL:
            kill(process)
        else:
            stop(process, number, command)
        spent.append(command.saved_queries)
        assert spent[-2] < spent[-1] < whole.budget.spent
    record = command.finish()
    assert record.timing.resumed == 2
    assert numbers(record) == numbers(whole)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_in_the_same_record(
    spec: RunSpec, store: Store, tmp_path: Path, numbers: Numbers
) -> None:
    """The target is trained by the command itself, so that its training and its cache are killed as well."""
    spec = replace(spec, target=UNTRAINED, budget=16_000)
    (tmp_path / "whole").mkdir()
    whole = Command(spec, Store(tmp_path / "whole" / "runs"), tmp_path / "whole").finish()

    command = Command(spec, store, tmp_path)
    moments = random.Random(0)
    early = [moments.uniform(0, 10) for _ in range(4)]  # seconds: imports, training, loading
    # Queries, so that the moments are spread over the run however busy the machine is.
    marks = sorted(moments.uniform(0, 0.9 * spec.budget) for _ in range(16))
    for seconds, mark in [(second, 0.0) for second in early] + [(moments.uniform(0, 0.3), mark) for mark in marks]:
        before = command.saved_queries
        process = command.start()
        command.wait_for(min(max(mark, before + 1), spec.budget) if mark else 0, process)
        time.sleep(seconds)
        kill(process)
        print(f"killed with {command.saved_queries} of {spec.budget} queries saved")
        assert command.records() == []
    record = command.finish()
    print(f"resumed {record.timing.resumed} times")
    assert record.timing.resumed > 10
    assert numbers(record) == numbers(whole)


@pytest.mark.slow
def test_compiled_runs_that_are_killed_steal_as_much(tmp_path: Path) -> None:
    """Compiled code rounds as it likes, so what must be alike is what is stolen, within the noise of three seeds."""
    agreement: dict[str, list[float]] = {"whole": [], "killed": []}
    for seed in range(3):
        spec = RunSpec(attack="dualstudent", defense="none", budget=30_000, seed=seed)
        whole, killed = (
            Command(spec, Store(tmp_path / f"{who}-{seed}"), tmp_path, flags=("--compile", "on")) for who in agreement
        )
        process = killed.start()
        killed.wait_for(random.Random(seed).uniform(0.2, 0.8) * spec.budget, process)
        kill(process)
        for who, command in (("whole", whole), ("killed", killed)):
            record = command.finish()
            assert record.stolen is not None
            assert record.env.compiled
            assert record.timing.resumed == (who == "killed")
            agreement[who].append(record.stolen.agreement)
    print(agreement)
    uninterrupted, resumed = agreement.values()
    spread = statistics.stdev(uninterrupted) + statistics.stdev(resumed)
    assert min(map(statistics.mean, agreement.values())) > 0.85
    assert abs(statistics.mean(uninterrupted) - statistics.mean(resumed)) < max(2 * spread, 0.02)
