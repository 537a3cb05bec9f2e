"""How a sweep looks while it goes on: a table on a terminal, and elsewhere a line for each run that ends."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...leaderboard.suites import column_label
from ..launchers.base import Due, Outcome, Watcher
from ..spec import Cell
from ..sweep import Standing
from .display import table


class Tally:
    """What is known of all runs of a sweep while it goes on."""

    def __init__(self, standings: "list[Standing]", runs: "list[Due]") -> None:
        asked = {run.cell.run_id for run in runs}
        self.total = len(standings)
        self.before = sum(each.state == "done" for each in standings)
        self.outcomes: dict[str, tuple[Cell, Outcome]] = {}
        self.due = len(runs)
        self.left_alone = [each for each in standings if each.state == "failed" and each.cell.run_id not in asked]

    @property
    def counts(self) -> Counter[str]:
        """How the runs of this sweep ended."""
        return Counter(outcome.status for _, outcome in self.outcomes.values())

    @property
    def done(self) -> int:
        """Runs that are done, whenever that was."""
        return self.before + self.counts["done"]

    @property
    def left(self) -> int:
        """Runs that have not ended yet."""
        return self.due - len(self.outcomes) + self.counts["interrupted"]


class SweepWatcher(Watcher):
    """Keeps the tally, and says in a line what has become of each run."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.began: dict[str, float] = {}

    def started(self, cell: Cell, slot: int) -> None:
        """Looks at the clock."""
        self.began[cell.run_id] = time.monotonic()

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """Counts it, and says so."""
        self.tally.outcomes[cell.run_id] = (cell, outcome)
        since = self.began.get(cell.run_id)
        took = f"  {time.monotonic() - since:.1f} s" if since is not None else ""
        elsewhere = ", by another driver" if outcome.elsewhere else ""
        reason = f": {outcome.reason}" if outcome.reason else ""
        count = f"[{len(self.tally.outcomes)}/{self.tally.due}]"
        self.say(f"{count} {line(cell)}  {outcome.status}{elsewhere}{took}{reason}")

    def say(self, text: str) -> None:
        """One line on stderr."""
        click.echo(text, err=True)


class QuietWatcher(SweepWatcher):
    """Only keeps the tally."""

    def say(self, text: str) -> None:
        """Nothing."""


class LiveWatcher(SweepWatcher):
    """A table of the slots, redrawn in place; failures stand above it."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self.slots: dict[str, int] = {}
        self.running: dict[int, tuple[Cell, str, int]] = {}

    def started(self, cell: Cell, slot: int) -> None:
        """The slot is taken."""
        super().started(cell, slot)
        self.slots[cell.run_id] = slot
        self.running[slot] = (cell, "starting", 0)

    def phase(self, cell: Cell, text: str) -> None:
        """What it does."""
        slot = self.slots[cell.run_id]
        self.running[slot] = (cell, text, self.running[slot][2])

    def progress(self, cell: Cell, spent: int) -> None:
        """How far it is."""
        slot = self.slots[cell.run_id]
        self.running[slot] = (cell, self.running[slot][1], spent)

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """The slot is free."""
        self.running.pop(self.slots.pop(cell.run_id, -1), None)
        self.quiet = outcome.status == "done"
        super().ended(cell, outcome)

    def say(self, text: str) -> None:
        """Only of what went wrong: what is done is counted in the table."""
        if not self.quiet:
            super().say(text)

    def picture(self) -> Group:
        """What is on the screen now."""
        rows = [
            (slot, line(cell), text, f"{spent:,}", self._age(cell)) for slot, (cell, text, spent) in self._in_order()
        ]
        slots: Table = table(("slot", "run", "phase", "queries", "since"), rows)
        return Group(slots, Text(self._summary()))

    def _in_order(self) -> list[tuple[int, tuple[Cell, str, int]]]:
        return sorted(self.running.items(), key=lambda item: item[0])

    def _age(self, cell: Cell) -> str:
        return _span(time.monotonic() - self.began[cell.run_id])

    def _summary(self) -> str:
        tally, counts = self.tally, self.tally.counts
        ended = [f"{counts[status]} {status}" for status in ("failed", "refused", "interrupted") if counts[status]]
        left = f"{tally.left - len(self.running)} waiting"
        return ", ".join([f"{tally.done} of {tally.total} runs done", *ended, f"{len(self.running)} running", left])


@contextmanager
def watching(tally: Tally, *, quiet: bool, live: bool) -> Iterator[SweepWatcher]:
    """The watcher that fits stderr and the options, for the length of a sweep."""
    console = Console(stderr=True)
    if quiet:
        yield QuietWatcher(tally)
    elif live and sys.stderr.isatty() and not console.is_dumb_terminal:
        watcher = LiveWatcher(tally)
        with Live(get_renderable=watcher.picture, console=console, refresh_per_second=4, transient=True):
            yield watcher
    else:
        yield SweepWatcher(tally)


def line(cell: Cell) -> str:
    """A run in a line."""
    asked = cell.request
    attack = column_label(asked.attack, asked.recovery)
    return f"{cell.run_id}  {asked.target}  {asked.budget:,}  {asked.defense}  {attack}  seed {asked.seed}"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
