"""Running a grid's cells one after the other, and telling how each ended."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from ...errors import Interrupted, UsageError
from .grid import describe

if TYPE_CHECKING:
    from ...leaderboard.record import Record
    from ...leaderboard.store import Store
    from ..numerics import Compilation
    from ..spec import Plan


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How runs are done and shown; nothing here is part of a run's identity."""

    data_dir: Path | None
    download: bool
    device: str
    compilation: "Compilation"
    force: bool
    as_json: bool
    quiet: bool
    progress: bool
    verbose: bool
    at_once: int = 1
    """How many cells take turns in this process."""


def run_all(plans: "list[Plan]", store: "Store", manner: Manner) -> int:
    """Run every cell, whatever became of those before it.

    Returns the exit code: 2 if a cell could not be run as asked (its data are absent, say), else 1 if one
    failed. Raises `Interrupted` once the user has asked to stop, and `UsageError` if there is only one cell.
    """
    codes = []
    with stopping() as stop:
        for first in range(0, len(plans), manner.at_once):
            if stop.is_set():
                raise Interrupted(f"{len(plans) - first} runs not started")
            group = plans[first : first + manner.at_once]
            if not manner.quiet:
                for number, plan in enumerate(group, first + 1):
                    _announce(plan, number, len(plans))
            outcomes = _run_group(group, store, manner, stop)
            codes += [_code(outcome, store, manner, alone=len(plans) == 1) for outcome in outcomes]
            if stopped := [outcome for outcome in outcomes if isinstance(outcome, Interrupted)]:
                raise stopped[0]
    if len(plans) > 1 and not manner.quiet:
        click.echo(f"{codes.count(0)} of {len(codes)} runs done", err=True)
    return max(codes)


def _announce(plan: "Plan", number: int, total: int) -> None:
    cell = describe(plan)
    settings = "  ".join(f"{key} {cell[key]}" for key in ("defense", "attack", "recovery", "budget", "seed"))
    click.echo(f"[{number}/{total}] {plan.run_id}  {cell['target']}  {settings}", err=True)


def _run_group(
    group: "list[Plan]", store: "Store", manner: Manner, stop: threading.Event
) -> "list[Record | UsageError | Interrupted]":
    from ..runner import run_in_turns
    from .display import listening

    quiet = manner.quiet or len(group) > 1  # the lines of several runs could not be told apart
    with listening(group[0].request.budget, quiet=quiet, live=manner.progress) as listener:
        return run_in_turns(
            [plan.request for plan in group],
            store=store,
            data_dir=manner.data_dir,
            download=manner.download,
            device=manner.device,
            compilation=manner.compilation,
            force=manner.force,
            listener=listener,
            stop=stop,
        )


def _code(outcome: "Record | UsageError | Interrupted", store: "Store", manner: Manner, *, alone: bool) -> int:
    """The exit code of one cell, whose record or error is shown. Raises the error of one that is alone."""
    if isinstance(outcome, Interrupted):
        return 130
    if isinstance(outcome, UsageError):
        if alone:
            raise outcome
        click.echo(f"Error: {outcome}", err=True)
        return 2
    _deliver(outcome, store.path_of(outcome), as_json=manner.as_json)
    if outcome.status == "done":
        return 0
    _explain(outcome, store.path_of(outcome), verbose=manner.verbose)
    return 1


def _deliver(record: "Record", path: Path, *, as_json: bool) -> None:
    if as_json:
        data = record.model_dump(mode="json")
        click.echo(json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    elif record.status == "done":
        from ...leaderboard.report import report_run
        from .display import stdout

        stdout().print(report_run(record, path))


def _explain(record: "Record", path: Path, *, verbose: bool) -> None:
    """One line on why a run did not finish."""
    error = record.error
    if error is not None and verbose:
        click.echo(error.traceback, err=True)
    reason = " ".join(f"{error.type}: {error.message}".split()) if error is not None else record.status
    click.echo(f"Error: run {record.run_id} failed: {reason} (record: {path})", err=True)


_STOPPING = "stopping after this step; once more to stop at once"


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event set by SIGINT or SIGTERM, so that state can be saved; the second signal kills."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        try:
            click.echo(_STOPPING, err=True)
        except RuntimeError:  # the signal came amid a write to stderr, whose buffer must not be entered again
            os.write(2, f"{_STOPPING}\n".encode())

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, ask)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
