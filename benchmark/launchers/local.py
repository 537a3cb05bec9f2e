"""The local launcher: every run in a process of its own on this machine, some at a time.

A process costs no new start of Python and torch: it is forked from a server that has imported both. It is still a
process like any other: it can crash, be killed, or hang past its time, and leaves a failed record and a log behind.
Runs that share a core are slower together than one after the other, many times over if each has as many threads as
there are cores, so a slot is a GPU, or as many cores as a run has threads.
"""

import importlib.util
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from ...errors import UsageError
from ...leaderboard.store import LOGS, Store
from .base import Conditions, Due, Launcher, Outcome, Watcher, settled
from .claims import Claim
from .job import CHILD, Job, call

ASK_AGAIN_SECONDS = 1.0
"""How often a run that another driver holds is asked for again."""
LOOK_SECONDS = 0.2
"""How often the driver looks whether it was asked to stop, and whose time is over."""
BURIAL_SECONDS = 120.0
"""How long writing the record of a run that died may take."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Read by the libraries when they are loaded, so set before the server starts."""


@dataclass
class Worker:
    """The process of a run, as its driver sees it."""

    due: Due
    slot: int
    claim: Claim
    job: Job
    process: ForkServerProcess
    pipe: Connection
    began: float
    spent: int = 0
    outcome: Outcome | None = None
    overdue: bool = False

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()  # before it led a group of its own, there was nobody else


@dataclass(kw_only=True)
class LocalLauncher(Launcher):
    """Runs on this machine.

    Args:
        conditions: the store, and what else holds for all runs.
        slots: how many runs at a time; None for one per GPU, or as many as there are cores for.
        threads: of each run; None for one, or on GPUs for each its share of the cores.
        timeout: seconds after which a run is killed; None for no limit.
    """

    conditions: Conditions
    slots: int | None = None
    threads: int | None = None
    timeout: float | None = None

    def launch(self, due: Sequence[Due], watcher: Watcher, stop: threading.Event) -> None:
        """See `Launcher.launch`. Raises `UsageError` where processes cannot be forked like this."""
        _Campaign(self, due, watcher, stop).go_on()


class _Campaign:
    """One call of `LocalLauncher.launch`."""

    def __init__(self, launcher: LocalLauncher, due: Sequence[Due], watcher: Watcher, stop: threading.Event) -> None:
        self.launcher = launcher
        self.conditions = launcher.conditions
        self.store = Store(self.conditions.store)
        self.watcher = watcher
        self.stop = stop
        self.waiting = deque(due)
        self.held: deque[Due] = deque()
        self.asked = 0.0
        self.workers: list[Worker] = []
        self.context = _server(launcher.threads or 1)
        gpus = self._gpus() if self.conditions.device in ("auto", "cuda") else []
        on_cores = not gpus and self.conditions.device in ("auto", "cpu")
        count = launcher.slots or len(gpus) or (max(1, _cores() // (launcher.threads or 1)) if on_cores else 1)
        self.threads = launcher.threads or (1 if on_cores else max(1, _cores() // count))
        self.gpu_of = [gpus[slot % len(gpus)] if gpus else None for slot in range(count)]

    def go_on(self) -> None:
        """Until every run has ended, or, after a stop, every one that had begun."""
        try:
            while self.workers or (self._left() and not self.stop.is_set()):
                if self.stop.is_set():
                    for worker in self.workers:
                        worker.process.terminate()  # asks, and does no harm twice
                else:
                    self._fill()
                self._listen()
                self._reap()
        finally:
            for worker in self.workers:  # something is wrong with the driver itself
                worker.kill()
                worker.claim.release()

    def _left(self) -> int:
        return len(self.waiting) + len(self.held)

    # -------------------------------------------------------------------------------------------- starting

    def _fill(self) -> None:
        """Put runs into the free slots: those that nobody else holds first."""
        for slot in range(len(self.gpu_of)):
            if all(worker.slot != slot for worker in self.workers):
                self._start_next(slot)

    def _start_next(self, slot: int) -> None:
        while self.waiting:
            due = self.waiting.popleft()
            if self._try(due, slot):
                return
        if self.held and time.monotonic() - self.asked > ASK_AGAIN_SECONDS:
            self.asked = time.monotonic()
            for _ in range(len(self.held)):
                if self._try(self.held.popleft(), slot):
                    return

    def _try(self, due: Due, slot: int) -> bool:
        """Start a run unless another driver has it, or has done it; whether it was started."""
        claim = Claim.take(self.store.root, due.cell.run_id)
        if claim is None:
            self.held.append(due)
            return False
        if (outcome := settled(due, self.store)) is not None:
            claim.release()
            self.watcher.ended(due.cell, outcome)
            return False
        self._start(due, slot, claim)
        return True

    def _start(self, due: Due, slot: int, claim: Claim) -> None:
        log = self.store.root / LOGS / f"{due.cell.run_id}.log"
        job = Job(cell=due.cell, conditions=self.conditions, threads=self.threads, gpu=self.gpu_of[slot], log=log)
        process, pipe = self._process("execute", job, claim)
        self.workers.append(Worker(due, slot, claim, job, process, pipe, time.monotonic()))
        self.watcher.started(due.cell, slot)

    def _process(self, function: str, *arguments: Any) -> tuple[ForkServerProcess, Connection]:
        """Start a process, and return it with the pipe that it answers through, its last argument."""
        receive, send = self.context.Pipe(duplex=False)
        process = self.context.Process(target=call, args=(function, *arguments, send))
        process.start()
        send.close()
        return process, receive

    # ------------------------------------------------------------------------------------------- following

    def _listen(self) -> None:
        """Take what the runs have to say, for a moment."""
        sources: dict[Any, Worker] = {}
        for worker in self.workers:
            sources[worker.process.sentinel] = worker
            if not worker.pipe.closed:
                sources[worker.pipe] = worker
        if not sources:
            time.sleep(LOOK_SECONDS)
        for source in wait(list(sources), LOOK_SECONDS):
            if isinstance(source, Connection):
                self._hear(sources[source])

    def _hear(self, worker: Worker) -> None:
        """Everything that one run has said so far."""
        try:
            while worker.pipe.poll():
                what, value = worker.pipe.recv()
                if what == "outcome":
                    worker.outcome = value
                elif what == "progress":
                    worker.spent = value
                    self.watcher.progress(worker.due.cell, value)
                else:
                    self.watcher.phase(worker.due.cell, value)
        except (EOFError, OSError):
            worker.pipe.close()

    def _reap(self) -> None:
        """Settle the runs whose process is gone, and kill those whose time is over."""
        limit = self.launcher.timeout
        for worker in list(self.workers):
            if worker.process.exitcode is None:
                if limit is not None and worker.seconds > limit and not worker.overdue:
                    worker.overdue = True
                    worker.kill()
                continue
            if not worker.pipe.closed:
                self._hear(worker)
                worker.pipe.close()
            outcome = worker.outcome or self._death(worker)
            worker.claim.release()
            self.workers.remove(worker)
            worker.process.close()
            if outcome.status == "done":
                worker.job.log.unlink(missing_ok=True)
            self.watcher.ended(worker.due.cell, outcome)

    def _death(self, worker: Worker) -> Outcome:
        """What becomes of a run that died without a word. Its claim is still held while its record is written."""
        code = worker.process.exitcode or 0
        if self.stop.is_set() and not worker.overdue:
            return Outcome(status="interrupted", reason="it was stopped before it could begin")
        if worker.overdue:
            kind, message = "TimedOut", f"it ran longer than its {self.launcher.timeout:g} seconds and was killed"
        elif code < 0:
            kind, message = "Killed", f"it died of {signal.Signals(-code).name}"
        else:
            kind, message = "Died", f"its process ended with exit code {code} and without a result"
        return self._bury(worker, kind, message)

    def _bury(self, worker: Worker, kind: str, message: str) -> Outcome:
        """Have its failed record written, by a process that has torch to say where it ran."""
        process, pipe = self._process("report_burial", worker.job, kind, message, worker.spent, worker.seconds)
        outcome = Outcome(status="failed", reason=f"{kind}: {message} (and no record of it could be written)")
        with suppress(EOFError):
            if pipe.poll(BURIAL_SECONDS):
                _, outcome = pipe.recv()
        pipe.close()
        process.kill()
        process.join()
        return outcome

    # ----------------------------------------------------------------------------------------------- slots

    def _gpus(self) -> list[str]:
        """The GPUs there are, as CUDA_VISIBLE_DEVICES names them. Counted elsewhere, for the driver has no torch."""
        process, pipe = self._process("report_gpus", dict(os.environ))
        try:
            count = pipe.recv()
        except EOFError:
            count = 0
        process.join()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _server(threads: int) -> ForkServerContext:
    """The server that processes are forked from; it starts with the first of them.

    Raises `UsageError` on a system that has none.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods() or importlib.util.find_spec("fcntl") is None:
        raise UsageError("runs cannot be launched side by side on this system: use msbench run")
    for name in THREADS:
        os.environ[name] = str(threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([CHILD])
    return context


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
