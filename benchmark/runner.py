"""Running: one cell of the benchmark, or several in turns.

On the CPU a run that was killed at any moment and continued by the same command ends in the same record, bit for bit
apart from times, and so does one that took turns with others. `benchmark.session` is what a run consists of.
"""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from ..errors import Interrupted, UsageError
from ..leaderboard.record import Record
from ..leaderboard.store import Store
from ..targets.datasets.loading import default_data_dir
from .environment import choose_device
from .listener import Listener
from .numerics import Compilation, numerics
from .session import Session, Steps, random_state, restore_random_state
from .spec import RunSpec, resolve


def run(
    spec: RunSpec,
    *,
    store: Store,
    data_dir: Path | None = None,
    download: bool = True,
    device: str = "auto",
    compilation: Compilation = "auto",
    force: bool = False,
    listener: Listener | None = None,
    stop: threading.Event | None = None,
) -> Record:
    """Run one cell of the benchmark and return its record, which the store then holds.

    A record that is done already is returned as it is; saved state is continued.

    Args:
        compilation: whether the attack's networks are compiled: slow to start, and the same within rounding.
        force: start over whatever is done or begun, and continue nothing but what was itself begun with ``force``.
        stop: once set, the run saves its state after the current step and ends; a target in training is given up.

    Raises:
        UsageError: something asked for cannot be had (name, parameter, data, checkpoint, store).
        Interrupted: ``stop`` was set; the same call continues.

    Any other failure becomes a record with status ``failed``.
    """
    (outcome,) = run_in_turns(
        [spec],
        store=store,
        data_dir=data_dir,
        download=download,
        device=device,
        compilation=compilation,
        force=force,
        listener=listener,
        stop=stop,
    )
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_in_turns(
    specs: Sequence[RunSpec],
    *,
    store: Store,
    data_dir: Path | None = None,
    download: bool = True,
    device: str = "auto",
    compilation: Compilation = "auto",
    force: bool = False,
    listener: Listener | None = None,
    stop: threading.Event | None = None,
) -> list[Record | UsageError | Interrupted]:
    """Run several cells in this process, a step of each in turn; see `run`.

    Their records are those of runs one after the other, bit for bit on the CPU apart from times. Each has a stream of
    its own on a GPU: since steps do not wait for the device, the small networks of several seeds share the card.
    All of them have to fit into its memory, where what one waits for may be another's.

    Returns:
        For each spec its record, or what its run raised, in the order of the specs.

    Raises as `run` before any of them begins: for a spec that cannot be used, a device or a store.
    """
    listener, stop, turns = listener or Listener(), stop or threading.Event(), []
    for spec in specs:
        plan = resolve(spec)
        finished = store.get(plan.info)
        if finished is not None and finished.status == "done" and not force:
            listener.phase(f"run {plan.run_id} is done already")
            turns.append(Turns(_ended(finished), plan.info.seed, choose_device("cpu")))
            continue
        store.check_writable()
        session = Session(plan, store, choose_device(device), listener, stop, force=force, compilation=compilation)
        steps = session.steps(data_dir or default_data_dir(), download)
        turns.append(Turns(steps, plan.info.seed, session.device))
    while any([turn.take() for turn in turns]):  # a list: each of them takes its turn
        pass
    return [turn.outcome for turn in turns if turn.outcome is not None]


class Turns:
    """A run that may share this process with others: what is global is its own while it has its turn."""

    def __init__(self, steps: Steps, seed: int, device: torch.device) -> None:
        self.steps = steps
        self.device = device
        self.outcome: Record | UsageError | Interrupted | None = None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self.devices):
            torch.manual_seed(seed)
            self.random = random_state(device)

    def take(self) -> bool:
        """Go one step on; whether there is more to do."""
        if self.outcome is not None:
            return False
        queue = torch.cuda.stream(self.stream) if self.stream else nullcontext()
        with torch.random.fork_rng(self.devices), numerics("fp32", self.device), queue:
            restore_random_state(self.random, self.device)
            try:
                next(self.steps)
            except StopIteration as end:
                self.outcome = end.value
            except (UsageError, Interrupted) as error:
                self.outcome = error
            self.random = random_state(self.device)
        return self.outcome is None


def _ended(record: Record) -> Steps:
    """A run that is done already."""
    yield from ()
    return record
