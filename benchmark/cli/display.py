"""How a run looks while it goes on, and the consoles that tables are printed to.

On a terminal there is one live line; elsewhere a plain line for each phase and each milestone, so that the
log of a batch job can be read.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ...leaderboard.record import CurvePoint
from ..listener import Listener

_WIDE = 1000
"""Columns where output goes to a file or a pipe: nothing is wrapped."""


class QuietListener(Listener):
    """Passes warnings on, and nothing else."""

    def warning(self, text: str) -> None:
        """One line on stderr."""
        click.echo(f"warning: {text}", err=True)


class PlainListener(QuietListener):
    """A line for each phase, each milestone, and a tenth of the target's training."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def phase(self, text: str) -> None:
        """The phase's name."""
        click.echo(text, err=True)

    def training(self, epoch: int, epochs: int, loss: float) -> None:
        """Every tenth of all epochs, and the last."""
        if epoch == epochs or epoch % max(1, epochs // 10) == 0:
            click.echo(f"epoch {epoch}/{epochs}  loss {loss:.4f}", err=True)

    def milestone(self, point: CurvePoint) -> None:
        """What the clone is worth by now."""
        click.echo(f"spent {point.queries:,}/{self.budget:,}  {_worth(point)}", err=True)


class RichListener(QuietListener):
    """One live line: the phase, queries spent (or epochs), what the clone is worth, time left."""

    def __init__(self, progress: Progress) -> None:
        self.bar = progress
        self.task = progress.add_task("starting", total=None, count="", note="")
        self.unit = ""

    def phase(self, text: str) -> None:
        """The line's name; what it counts stays."""
        self.bar.update(self.task, description=text)

    def training(self, epoch: int, epochs: int, loss: float) -> None:
        """Counts epochs."""
        self._count("epochs", epoch, epochs)
        self.bar.update(self.task, note=f"loss {loss:.4f}")

    def progress(self, spent: int, budget: int, losses: Mapping[str, float]) -> None:
        """Counts queries."""
        self._count("queries", spent, budget)

    def milestone(self, point: CurvePoint) -> None:
        """What the clone is worth by now."""
        self.bar.update(self.task, note=_worth(point))

    def _count(self, unit: str, completed: int, total: int) -> None:
        if unit != self.unit:  # another clock: time left must not be guessed from the one before
            self.unit = unit
            self.bar.reset(self.task, total=total, count="", note="")
        self.bar.update(self.task, completed=completed, count=f"{completed:,}/{total:,} {unit}")


@contextmanager
def listening(budget: int, *, quiet: bool, live: bool) -> Iterator[Listener]:
    """The listener that fits stderr and the options, for the length of one run."""
    console = Console(stderr=True)
    if quiet:
        yield QuietListener()
    elif live and sys.stderr.isatty() and not console.is_dumb_terminal:
        with _live_line(console) as progress:
            yield RichListener(progress)
    else:
        yield PlainListener(budget)


def _live_line(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _worth(point: CurvePoint) -> str:
    return f"accuracy {point.clone_accuracy:.1%}  agreement {point.agreement:.1%}".replace("%", " %")


def stdout() -> Console:
    """The console for results: as wide as the terminal, or wide enough for a pipe."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if narrow else _WIDE, highlight=False)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table; numbers stand to the right, and text is taken as it is."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, header in enumerate(headers):
        numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        grid.add_column(Text(header), justify="right" if numeric else "left")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    return grid


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
