"""Scores as rows: one for each defense and attack, of which every report of `scoring.cells` is made."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from .scoring import METRICS, Cell, Estimate, by_severity, worst_cases

if TYPE_CHECKING:
    import pandas as pd


class ScoreRow(NamedTuple):
    """A defense under an attack, as reports and frames have it; NaN where nothing was measured."""

    protocol: str
    target: str
    budget: int
    defense: str
    attack: str
    n: int = 0
    """Runs; 0 where the cell is missing."""
    agreement: float = math.nan
    agreement_interval: float = math.nan
    """Half of the 95 % interval, as are the others."""
    clone_accuracy: float = math.nan
    clone_accuracy_interval: float = math.nan
    defended_accuracy: float = math.nan
    defended_accuracy_interval: float = math.nan
    l1: float = math.nan
    l1_interval: float = math.nan
    stolen_share: float = math.nan
    stolen_share_interval: float = math.nan
    target_accuracy: float = math.nan
    targets: str = ""
    ranked: bool = False
    worst_case: bool = False
    complete: bool = False
    """Whether the defense was run against every ranked attack of its table."""
    note: str = "not run"
    flags: str = ""

    @property
    def table(self) -> tuple[str, str, int]:
        """Which table it belongs to."""
        return self.protocol, self.target, self.budget


def score_rows(cells: Iterable[Cell]) -> list[ScoreRow]:
    """A row for each defense and attack of each table, tables in order, missing cells too.

    Every report is made from these rows. Defenses stand in the order of their worst cases, best first; incomplete ones
    last, since a missing cell is no merit.
    """
    return [row for table in _tables(cells) for row in _table_rows(table)]


def frame(rows: Iterable[ScoreRow]) -> "pd.DataFrame":
    """The rows as one tidy frame."""
    import pandas as pd  # not needed, and not waited for, to show the rows

    return pd.DataFrame(list(rows), columns=list(ScoreRow._fields))


def _tables(cells: Iterable[Cell]) -> list[list[Cell]]:
    tables: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        tables[cell.table].append(cell)
    return [tables[key] for key in sorted(tables)]


def _table_rows(table: list[Cell]) -> Iterator[ScoreRow]:
    """The rows of one table, defenses in order of merit and attacks in order of names."""
    present = {(cell.defense, cell.attack): cell for cell in table}
    attacks = sorted({cell.attack for cell in table})
    needed = {cell.attack for cell in table if cell.ranked}
    worst = {place[-1]: cell for place, cell in worst_cases(table).items()}

    def complete(defense: str) -> bool:
        cells = [present.get((defense, attack)) for attack in needed]
        return all(cell is not None and cell.stolen_share is not None for cell in cells)

    def merit(defense: str) -> tuple[bool, bool, float, str]:
        known = worst.get(defense)
        return not complete(defense), known is None, -by_severity(known)[0] if known else 0.0, defense

    for defense, attack in product(sorted({cell.defense for cell in table}, key=merit), attacks):
        cell = present.get((defense, attack))
        row = _score_row(cell) if cell else ScoreRow(*table[0].table, defense, attack)
        yield row._replace(complete=complete(defense), worst_case=cell is not None and cell is worst.get(defense))


def _score_row(cell: Cell) -> ScoreRow:
    numbers: dict[str, Any] = {}
    for metric in METRICS:
        known: Estimate | None = getattr(cell, metric)
        numbers[metric] = known.mean if known else math.nan
        numbers[f"{metric}_interval"] = math.nan if known is None or known.half is None else known.half
    return ScoreRow(
        *cell.table,
        cell.defense,
        cell.attack,
        cell.n,
        **numbers,
        target_accuracy=cell.target_accuracy,
        targets="; ".join(cell.targets),
        ranked=cell.ranked,
        note=cell.note,
        flags="; ".join(cell.flags),
    )
