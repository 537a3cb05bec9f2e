"""The gate on attack strength: run a suite, and compare each of its cells with the committed baseline.

Records are always made anew: one from before a change says nothing about the code after it.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

from ..errors import UsageError
from ..leaderboard.baseline import Comparison
from ..leaderboard.record import Record
from ..leaderboard.store import Store
from ..leaderboard.suites import FrozenSuite, column_label
from .launchers.base import Launcher, Outcome, Watcher
from .spec import Cell
from .suite import plans
from .sweep import due, look, part

Key = tuple[str, int, str, str, str]
"""Target, budget, defense, attack and recovery, as the suite writes them."""


def cells_of(
    suite: FrozenSuite, seeds: Sequence[int] | None = None, *, attacks: Sequence[str] = (), defenses: Sequence[str] = ()
) -> list[Cell]:
    """The runs of a suite, in the order due.

    Args:
        seeds: instead of the suite's.
        attacks, defenses: as for `benchmark.sweep.part`.

    Raises `UnknownName` for a pattern that matches nothing, and `UsageError` if together they leave nothing.
    """
    if seeds is not None:
        tables = tuple(table.model_copy(update={"seeds": tuple(seeds)}) for table in suite.tables)
        suite = suite.model_copy(update={"tables": tables})
    cells = plans(part(suite, attacks=attacks, defenses=defenses))
    if not cells:
        raise UsageError(f"suite {suite.name} has no run of {', '.join([*attacks, *defenses])}")
    return cells


def key_of(cell: Cell) -> Key:
    """The cell that a run belongs to, whatever its seed."""
    request = cell.request
    return request.target, request.budget, request.defense, request.attack, request.recovery


def run_cells(
    cells: Sequence[Cell], launcher: Launcher, folder: Path, watcher: Watcher, stop: threading.Event
) -> list[tuple[Key, Record]]:
    """Run the cells that ``folder`` does not hold yet; returns each one's record with its key, failed ones too."""
    store = Store(folder)
    runs = due(look(cells, store), retry_failed=True)
    if runs:
        launcher.launch(runs, watcher, stop)
    found = ((cell, store.get(cell.info)) for cell in cells)
    return [(key_of(cell), record) for cell, record in found if record is not None]


class Lines(Watcher):
    """Says of each run that has ended what became of it."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total = total
        self.say = say
        self.count = 0

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """One line."""
        self.count += 1
        why = f": {outcome.reason}" if outcome.reason else ""
        self.say(f"[{self.count}/{self.total}] {title(key_of(cell))} seed {cell.request.seed}: {outcome.status}{why}")


# --------------------------------------------------------------------------------------------------- reports


def title(key: Key) -> str:
    """A cell's name in reports."""
    target, budget, defense, attack, recovery = key
    return f"{target} {budget:,} {defense} {column_label(attack, recovery)}"


def as_rows(lines: Iterable[Comparison]) -> list[list[str]]:
    """What terminal and Markdown show of comparisons: the cell, the metric, both values, the threshold, the verdict."""
    return [
        [
            title(line.cell),
            line.metric,
            "-" if line.measured is None else f"{line.measured:,.4g}",
            f"{line.reference:,.4g}",
            f"± {line.threshold:,.3g}",
            str(line.n),
            line.verdict,
        ]
        for line in lines
    ]


HEADERS = ["cell", "metric", "measured", "baseline", "threshold", "seeds", "verdict"]


def as_markdown(lines: Sequence[Comparison], suite: str) -> str:
    """A summary for a pull request: what changed first, and everything below."""
    broken = [line for line in lines if not line.holds]
    verdict = "held" if not broken else f"{len(broken)} of {len(lines)} means changed"
    parts = [f"## Attack strength, suite {suite}: {verdict}\n"]
    for heading, chosen in (("Changed", broken), ("All", list(lines))):
        if chosen:
            rows = ["| " + " | ".join(row) + " |" for row in [HEADERS, ["---"] * len(HEADERS), *as_rows(chosen)]]
            parts.append(f"### {heading}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def as_junit(lines: Sequence[Comparison], suite: str) -> bytes:
    """JUnit's XML: a test case for each mean."""
    failures = sum(not line.holds for line in lines)
    root = Xml.Element("testsuite", name=f"msbench regress {suite}", tests=str(len(lines)), failures=str(failures))
    for line, row in zip(lines, as_rows(lines), strict=True):
        case = Xml.SubElement(root, "testcase", classname=row[0], name=line.metric)
        if not line.holds:
            text = f"{line.verdict}: measured {row[2]}, baseline {row[3]} {row[4]}, {line.n} seeds"
            Xml.SubElement(case, "failure", message=text).text = text
    document: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
