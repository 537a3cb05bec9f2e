"""Real processes, killed or stopped and started again by the same command, end in the uninterrupted record."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from msbench.benchmark import runner
from msbench.benchmark.spec import RunSpec
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store, load, record_files

Numbers = Callable[[Record], dict[str, Any]]

PROGRAM = (sys.executable, "-c", "from msbench.benchmark.cli.main import main; main()")
"""The console script without its file, which need not be where the interpreter is."""
PATIENCE = 120
"""Seconds that a process may take for anything."""


@dataclass
class Command:
    """One ``msbench run`` that can be started, stopped and started again."""

    spec: RunSpec
    store: Store
    home: Path
    options: tuple[str, ...] = ()
    sessions: int = field(default=0, init=False)

    @property
    def state(self) -> Path | None:
        """The saved state, if there is one."""
        return next(self.store.root.glob(".states/*.pt"), None)

    @property
    def saved_queries(self) -> int:
        """Queries spent in that state; 0 without one."""
        return torch.load(self.state, weights_only=True)["box"]["spent"] if self.state else 0

    @property
    def log(self) -> str:
        """What the last session said on stderr."""
        return (self.home / f"stderr-{self.sessions}").read_text()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, as a process of its own."""
        self.sessions += 1
        asked = {"attack": self.spec.attack, "defense": self.spec.defense, "recovery": self.spec.recovery}
        asked |= {"budget": self.spec.budget, "seed": self.spec.seed, "store": self.store.root}
        if self.spec.checkpoint is not None:
            asked["checkpoint"] = self.spec.checkpoint
        options = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
        settings = {"MSBENCH_HOME": self.home, "MSBENCH_SAVE_SECONDS": 0, "MSBENCH_DEVICE": "cpu"}
        settings["OMP_NUM_THREADS"] = torch.get_num_threads()  # sums may depend on how they are shared out
        with (self.home / f"stderr-{self.sessions}").open("wb") as log:
            return subprocess.Popen(
                [*PROGRAM, "run", *options, *self.options],
                env=os.environ | {name: str(value) for name, value in settings.items()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def start_and_wait_for_progress(self) -> subprocess.Popen[bytes]:
        """Start it, and return as soon as it has saved state of its own."""
        before = self._saved_at()
        process = self.start()
        deadline = time.monotonic() + PATIENCE
        while self._saved_at() == before:
            assert process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.005)
        return process

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

    def _saved_at(self) -> int | None:
        state = self.state
        try:
            return state.stat().st_mtime_ns if state else None
        except FileNotFoundError:  # the run has just ended
            return None


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> RunSpec:
    """A run of some seconds that everything random takes part in."""
    return RunSpec(
        attack="dualstudent:batch=32,width=16",
        defense="noise",
        recovery="averaging:repeats=2",
        budget=9_600,
        checkpoint=checkpoint,
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


def test_a_run_killed_twice_and_asked_to_stop_twice_ends_in_the_same_record(
    command: Command, whole: Record, numbers: Numbers
) -> None:
    moments = random.Random(0)
    spent = [0]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        process = command.start_and_wait_for_progress()
        time.sleep(moments.uniform(0, 0.05))
        if number == signal.SIGKILL:
            kill(process)
        else:
            stop(process, number, command)
        spent.append(command.saved_queries)
        assert spent[-2] < spent[-1] < whole.budget.spent
    record = command.finish()
    assert record.timing.resumed == 4
    assert numbers(record) == numbers(whole)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_in_the_same_record(
    store: Store, tmp_path: Path, numbers: Numbers
) -> None:
    """The target is trained by the command itself, so that its training and its cache are killed as well."""
    spec = RunSpec(attack="dualstudent:batch=32", defense="noise", recovery="averaging:repeats=2", budget=40_000)
    (tmp_path / "whole").mkdir()
    reference = Command(spec, Store(tmp_path / "whole" / "runs"), tmp_path / "whole")
    started = time.monotonic()
    whole = reference.finish()
    duration = time.monotonic() - started

    command = Command(spec, store, tmp_path)
    lifetimes = random.Random(0)
    startup = duration - whole.timing.wall  # imports, mostly: what every session spends before it gets on
    kills = 0
    while kills < 20:
        process = command.start()
        try:
            # Every session gets on by a twentieth of the run on average; some die before they have begun.
            process.wait(startup * lifetimes.uniform(0.8, 1.2) + whole.timing.wall / 20 * lifetimes.uniform(0, 2))
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
            assert command.records() == []
            print(f"kill {kills}: {command.saved_queries} queries saved")
        else:
            pytest.fail(f"the run ended after {kills} kills: {command.log}")
    record = command.finish()
    print(f"resumed {record.timing.resumed} times; whole {duration:.1f} s of which {startup:.1f} s starting up")
    assert record.timing.resumed > 1
    assert numbers(record) == numbers(whole)
