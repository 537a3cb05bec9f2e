"""The contract of a launcher: it places runs, and the records decide what is done.

A launcher keeps no account of its own. Whatever becomes of it and of the machines, what counts is which records the
store holds afterwards, so the same command goes on where this one ended. A run that fails, dies or hangs never stops
the others, and leaves a record that says why.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...leaderboard.record import Record
from ...leaderboard.store import Store, relative_path
from ..spec import Cell

Compilation = Literal["auto", "off", "on"]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under what conditions runs are done; nothing here is part of a run's identity."""

    store: Path
    """Folder of the records."""
    data_dir: Path | None = None
    download: bool = True
    device: str = "auto"
    compilation: Compilation = "auto"


@dataclass(frozen=True, kw_only=True)
class Due:
    """A run to be placed."""

    cell: Cell
    stamp: int | None
    """When the record was written that the caller had seen of it, in ns; None if there was none. A record that is
    newer is another driver's, and settles the run."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run."""

    status: Literal["done", "failed", "refused", "interrupted"]
    """``refused`` is a run that could not begin as asked (its data are absent, say), and leaves no record."""
    reason: str = ""
    elsewhere: bool = False
    """Whether another driver had it."""


class Watcher:
    """Hears what becomes of runs; this one says nothing. Override what is of interest."""

    def started(self, cell: Cell, slot: int) -> None:
        """A run begins in a slot, counted from 0."""

    def phase(self, cell: Cell, text: str) -> None:
        """A new part of a run begins."""

    def progress(self, cell: Cell, spent: int) -> None:
        """A run has spent so many queries."""

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """A run has come to its end, once for each."""


class Launcher(ABC):
    """A way of placing runs."""

    @abstractmethod
    def launch(self, due: Sequence[Due], watcher: Watcher, stop: threading.Event) -> None:
        """Do every run, in this order as far as it goes, and return when each has ended.

        Once ``stop`` is set, running ones are asked to save their state and to end, and no other is begun.
        """


def stamp_of(path: Path) -> int | None:
    """When a record was written, in ns; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def settled(due: Due, store: Store) -> Outcome | None:
    """What another driver has made of a run since it was found to be due, or None if it is due still."""
    stamp = stamp_of(store.root / relative_path(due.cell.info))
    if stamp is None or (record := store.get(due.cell.info)) is None:
        return None
    if record.status == "done":
        return Outcome(status="done", elsewhere=True)
    if record.status == "failed" and stamp != due.stamp:
        return Outcome(status="failed", reason=reason_of(record), elsewhere=True)
    return None


def reason_of(record: Record) -> str:
    """In one line, why a run failed."""
    error = record.error
    return " ".join(f"{error.type}: {error.message}".split()) if error is not None else record.status
