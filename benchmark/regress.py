"""The gate on attack strength: run a suite, and compare each of its cells with the committed baseline.

Records are always made anew: one from before a change says nothing about the code after it.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from xml.etree import ElementTree as Xml

from ..errors import UsageError
from ..leaderboard.baseline import Comparison, Key, Planned
from ..leaderboard.limits import FEWEST_NEW
from ..leaderboard.store import Store
from ..leaderboard.suites import FrozenSuite, column_label
from ..leaderboard.texts import escape_markdown, visible
from .launchers.base import Launcher, Outcome, Watcher
from .spec import Cell
from .suite import plans
from .sweep import due, expect_runs, look, part


def cells_of(
    suite: FrozenSuite, seeds: Sequence[int] | None = None, *, attacks: Sequence[str] = (), defenses: Sequence[str] = ()
) -> list[Cell]:
    """The runs of a suite, in the order due.

    Args:
        seeds: instead of the suite's.
        attacks, defenses: as for `benchmark.sweep.part`.

    Raises `UnknownName` for a pattern that matches nothing, and `UsageError` if together they leave nothing, or a cell
    with too few seeds to tell a change from an odd one.
    """
    if seeds is not None:
        tables = tuple(table.model_copy(update={"seeds": tuple(seeds)}) for table in suite.tables)
        suite = suite.model_copy(update={"tables": tables})
    cells = plans(part(suite, attacks=attacks, defenses=defenses))
    expect_runs(cells, suite, [*attacks, *defenses])
    key, fewest = min(Counter(map(key_of, cells)).items(), key=itemgetter(1))
    if fewest < FEWEST_NEW:
        raise UsageError(
            f"{title(key)} has {fewest} of the {FEWEST_NEW} seeds that it takes to tell a change from an odd seed: "
            "give more with --seed"
        )
    return cells


def key_of(cell: Cell) -> Key:
    """The cell that a run belongs to, whatever its seed."""
    request = cell.request
    return request.target, request.budget, request.defense, request.attack, request.recovery


class Lines(Watcher):
    """Says of each run that has ended what became of it, and remembers why it was not done."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total = total
        self.say = say
        self.count = 0
        self.reasons: dict[str, str] = {}
        """By run id."""

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """One line."""
        self.count += 1
        why = visible(outcome.reason)  # it goes into XML, which has no control characters
        if outcome.status != "done":
            self.reasons[cell.run_id] = why
        told = f": {why}" if why else ""
        self.say(f"[{self.count}/{self.total}] {title(key_of(cell))} seed {cell.request.seed}: {outcome.status}{told}")


def run_cells(
    cells: Sequence[Cell], launcher: Launcher, folder: Path, watcher: Lines, stop: threading.Event
) -> list[Planned]:
    """Run the cells that ``folder`` does not hold yet; returns what came of each, in their order."""
    store = Store(folder)
    runs = due(look(cells, store), retry_failed=True)
    if runs:
        launcher.launch(runs, watcher, stop)
    return [
        Planned(
            cell=key_of(cell),
            seed=cell.request.seed,
            record=store.get(cell.info),
            reason=watcher.reasons.get(cell.run_id, ""),
        )
        for cell in cells
    ]


# --------------------------------------------------------------------------------------------------- reports


def title(key: Key) -> str:
    """A cell's name in reports."""
    target, budget, defense, attack, recovery = key
    return f"{target} {budget:,} {defense} {column_label(attack, recovery)}"


HEADERS = ["cell", "metric", "measured", "baseline", "limits", "seeds", "verdict"]


def as_rows(lines: Iterable[Comparison]) -> list[list[str]]:
    """What terminal and Markdown show of comparisons, as `HEADERS` say."""
    return [
        [
            title(line.cell),
            line.metric,
            _span(*line.measured) if line.measured else "-",
            _number(line.reference),
            _span(*line.limits),
            str(line.done) if line.done == line.planned else f"{line.done} of {line.planned}",
            line.verdict,
        ]
        for line in lines
    ]


def _span(low: float, high: float) -> str:
    return _number(low) if low == high else f"{_number(low)} … {_number(high)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def not_done(runs: Iterable[Planned]) -> dict[str, str]:
    """Why runs are not done, in one line, by their names."""
    return {
        f"{title(run.cell)} seed {run.seed}": run.reason or "it left no record and no reason"
        for run in runs
        if not run.done
    }


def summary(lines: Sequence[Comparison], runs: Sequence[Planned]) -> str:
    """What came of it all, in a few words."""
    verdicts = Counter(line.verdict for line in lines)
    missing = verdicts["missing"]
    counts = {
        f"of {len(runs)} runs not done": len(not_done(runs)),
        f"of {len(lines)} metrics changed": len(lines) - verdicts["held"] - missing,
        "not judged": missing,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or f"all {len(lines)} metrics held"


def as_markdown(lines: Sequence[Comparison], runs: Sequence[Planned], suite: str) -> str:
    """A summary for a pull request: what was not done and what changed first, and everything below."""
    parts = [f"## Attack strength, suite {suite}: {summary(lines, runs)}\n"]
    if failed := not_done(runs):
        named = (escape_markdown(f"{name}: {why}") for name, why in failed.items())
        parts.append("### Not done\n\n" + "\n".join(f"- {line}" for line in named) + "\n")
    broken = [line for line in lines if not line.holds]
    for heading, chosen in (("Not held", broken), ("All", list(lines))):
        if chosen:
            cells = [list(map(escape_markdown, row)) for row in as_rows(chosen)]
            rows = ["| " + " | ".join(row) + " |" for row in [HEADERS, ["---"] * len(HEADERS), *cells]]
            parts.append(f"### {heading}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def as_junit(lines: Sequence[Comparison], runs: Sequence[Planned], suite: str) -> bytes:
    """JUnit's XML: a test case for each comparison, and one that is an error for each run that is not done."""
    failures, failed = sum(not line.holds for line in lines), not_done(runs)
    root = Xml.Element("testsuite", name=f"msbench regress {suite}", tests=str(len(lines) + len(failed)))
    root.attrib |= {"failures": str(failures), "errors": str(len(failed))}
    for name, why in failed.items():
        case = Xml.SubElement(root, "testcase", classname=name, name="run")
        Xml.SubElement(case, "error", message=why).text = why
    for line, row in zip(lines, as_rows(lines), strict=True):
        case = Xml.SubElement(root, "testcase", classname=row[0], name=line.metric)
        if not line.holds:
            text = f"{line.verdict}: measured {row[2]}, baseline {row[3]}, limits {row[4]}, seeds {row[5]}"
            Xml.SubElement(case, "failure", message=text).text = text
    document: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"
