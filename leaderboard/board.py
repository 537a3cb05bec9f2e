"""The board: a suite's scores, from records alone.

`make_board` is a pure function of a frozen suite, the records and the baseline: no clock, no order of files. Terminal,
Markdown, CSV, LaTeX, JSON and the page all show this one object, so they cannot disagree.

A record counts if its run is one that the suite asks for, which its identity, the hash of its spec, says; everything
else in a store is another experiment. Of several records of one run the newest that is done counts.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, get_args

from ..errors import UsageError
from .baseline import Baseline
from .board_attacks import AttackLine, attack_lines, worst_cases
from .board_runs import Grid, Run, command_of, enter, floor_of, grid_of, newest, weights_attacked
from .record import Record
from .scoring import ROUNDING, Estimate, by_mean, estimate, ranks, stolen_share, told_apart
from .suites import Column, DefenseEntry, Family, FrozenSuite, Table
from .texts import marked

if TYPE_CHECKING:
    from .board_entries import Submitted

DROP_CAPS = (0.0, 0.01, 0.02, 0.05)
"""Caps on the loss of accuracy, as shares."""
L1_CAPS = (0.1, 0.2, 0.5, 1.0)
"""Caps on the mean L1 distance of released from clean answers."""
NOTHING_TO_STEAL = "a target that was attacked is no better than the floor"
"""Why a defense is not ranked whose stolen share is undefined."""
SHOWN_FIRST = (0.01, 0.5)
"""The tier that is shown first."""
FAMILIES: tuple[Family, ...] = get_args(Family)
"""Controls first; then the classes of defenses, each with a ranking of its own."""

# ------------------------------------------------------------------------------------------ what a board is


@dataclass(frozen=True, kw_only=True)
class Score:
    """One defense setting against one column, over the suite's seeds."""

    column: int
    """Position in `BoardTable.columns`."""
    n: int
    """Seeds that are done, of `BoardTable.seeds`."""
    sigma: Estimate | None
    """Stolen share; None where the target is no better than the floor."""
    clone_accuracy: Estimate
    """Of the clones that the attacker is left with (`curve.kept_accuracy`); agreement is the final ones'."""
    agreement: Estimate
    queries_to_half: float | None
    """Median over seeds; None if half of them never reach half of the target's accuracy."""
    curve: tuple[tuple[int, float], ...]
    """Queries and mean clone accuracy at the milestones that all its runs have."""
    band: tuple[tuple[float, float], ...]
    """Lowest and highest clone accuracy over the seeds at these milestones."""
    seconds: float | None
    """Median of the attack's seconds per 100,000 queries; None if it asked for nothing."""
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting of one defense."""

    defense: int
    """Position in `BoardTable.defenses`."""
    setting: str
    """As it would be typed: ``topk:k=3``."""
    scores: tuple[Score | None, ...]
    """One a column; None where no run is done. Only the undefended target meets columns that are not ranked."""
    worst: int | None
    """The ranked column with the largest mean stolen share, the first of several; None if there is none yet."""
    worst_cases: tuple[int, ...]
    """All ranked columns that reach that share: what is named as the worst case. None where nothing was stolen."""
    complete: bool
    """Whether every ranked column has all of the suite's seeds. What is not complete is never placed."""
    accuracy: float | None
    """Defended accuracy on the test set: the worst mean over the ranked columns; None without any run."""
    drop: float | None
    """Undefended accuracy less that, as a share, at least 0."""
    l1: float | None
    """Mean L1 distance of released from clean answers: the worst mean over the ranked columns."""
    shifted_drop: float | None
    """The same loss on the shifted copy of the test set; None where it was not measured."""
    shifted_l1: float | None = None
    """The same distance on the shifted copy."""
    latency: float | None
    """Median ratio of the defended answer's time to the bare one's, in batches of 256."""
    flags: tuple[str, ...]
    """Everything that the records and the other rows warn about, each once."""
    reproduce: str
    """The command that runs the worst case again; as long as there is none, the first ranked column."""

    @property
    def name(self) -> str:
        """The setting, marked if something is flagged, which takes no rank away: a test may err, a reader can judge."""
        return marked(self.setting, self.flags)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A defense at one tier."""

    defense: int
    row: int | None
    """Position in `BoardTable.rows` of its best setting that meets both caps; None if none does."""
    rank: int | None
    """1 is best, see `scoring.ranks`. None for controls, while runs of its sweep are missing, and while the table is
    closed."""
    why: str
    """Why there is no row or no rank: ``no setting meets both caps``, ``runs are missing``, ``control``, …; empty for
    what is ranked."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The ranking under two caps at once."""

    drop: float
    l1: float
    placed: tuple[Placed, ...]
    """Every defense of the table, best first within its family, those without a rank last."""
    attacks: tuple[AttackLine, ...]
    """Every column against what is placed here."""


@dataclass(frozen=True, kw_only=True)
class GateLine:
    """Whether an attack reaches its reference strength on the undefended target."""

    column: int
    measured: Estimate | None
    """Mean clone accuracy over seeds."""
    reference: Estimate | None
    """The baseline's; None where it has none, and then the gate is closed."""
    threshold: float | None
    """How far from the reference the measured mean may be: much stronger is as suspicious as weaker."""
    holds: bool
    """Never before all of the suite's seeds are done."""


@dataclass(frozen=True, kw_only=True)
class BoardTable:
    """One target under one budget."""

    target: str
    budget: int
    seeds: tuple[int, ...]
    num_classes: int
    accuracy: float | None
    """Of the undefended target; None without any run."""
    floor: float
    """Accuracy without asking the victim: chance, or what a ``floor`` column reached if that is more."""
    columns: tuple[Column, ...]
    defenses: tuple[DefenseEntry, ...]
    rows: tuple[Row, ...]
    """All settings of all defenses, in the suite's order."""
    gate: tuple[GateLine, ...]
    tiers: tuple[Tier, ...]
    """All pairs of `DROP_CAPS` and `L1_CAPS`."""
    runs_done: int
    runs_planned: int
    targets: tuple[str, ...]
    """Digests of the attacked weights."""
    blockers: tuple[str, ...]
    """Why nothing is ranked: attacks off their reference strength, controls and floors that were not run."""
    flags: tuple[str, ...]
    """What a reader should know before trusting any row."""

    @property
    def open(self) -> bool:
        """Whether every attack reaches its reference strength, and all is there to compare with."""
        return not self.blockers

    def worst_case(self, row: Row) -> str:
        """What a row's worst case is called: the names of all that tie, or nothing where nothing was stolen."""
        return "; ".join(self.columns[i].label for i in row.worst_cases)


@dataclass(frozen=True, kw_only=True)
class Board:
    """A whole board."""

    suite: str
    title: str
    text: str
    protocol: str
    tables: tuple[BoardTable, ...]
    records: str
    """SHA-256 over the identities of the runs that count and all that the board takes from their records."""
    submitted: tuple["Submitted", ...] = ()
    """Who entered its rows, and what submitted attacks do to them, see `board_entries`."""


# ------------------------------------------------------------------------------------------- from the records


def make_board(
    suite: FrozenSuite, records: Iterable[Record], baseline: Baseline | None, entries: Iterable[DefenseEntry] = ()
) -> Board:
    """Score every defense of a suite.

    Args:
        records: of any kind, in any order; those that the suite does not ask for do not count. Used one by one.
        baseline: the attacks' reference strength; without it nothing is ranked.
        entries: defenses that enter every table beside the suite's own.

    Raises `UsageError` for a baseline of another suite or protocol, and for two defenses of one name.
    """
    if baseline is not None and (baseline.suite, baseline.protocol) != (suite.name, suite.protocol):
        raise UsageError(
            f"the baseline is of suite {baseline.suite}, protocol {baseline.protocol}; "
            f"the board is of suite {suite.name}, protocol {suite.protocol}"
        )
    added = sorted(entries, key=lambda entry: entry.name)
    grids = [grid_of(suite.protocol, enter(table, added)) for table in suite.tables]
    asked = {run for grid in grids for runs in grid.runs.values() for run in runs}
    runs = newest(records, asked)
    return Board(
        suite=suite.name,
        title=suite.title,
        text=suite.text,
        protocol=suite.protocol,
        tables=tuple(_table(grid, runs, baseline) for grid in grids),
        records=hashlib.sha256(json.dumps(sorted(runs.items())).encode()).hexdigest(),
    )


# -------------------------------------------------------------------------------------------------- one table


def _table(grid: Grid, runs: Mapping[str, Run], baseline: Baseline | None) -> BoardTable:
    table = grid.table
    floor, no_floor = floor_of(grid, runs)
    rows = [_row(grid, row, runs, floor) for row in range(len(grid.rows))]
    undefended = _only(grid, rows, "none")
    labels = _only(grid, rows, "label_only")
    gate = tuple(_gate(table, undefended, baseline))
    blockers = (*_blockers(table, gate, undefended, labels), *no_floor)
    rows = [_compared(table.defenses[row.defense], row, labels) for row in rows]
    ids = {run for runs in grid.runs.values() for run in runs}
    done = {run: runs[run] for run in sorted(ids & runs.keys())}
    bare = {run: done[run] for run in sorted(_ids_of(grid, "none") & done.keys())} or done
    return BoardTable(
        target=table.target.name,
        budget=table.budget,
        seeds=table.seeds,
        num_classes=table.num_classes,
        accuracy=estimate(run.accuracy for run in bare.values()).mean if bare else None,
        floor=floor,
        columns=table.columns,
        defenses=table.defenses,
        rows=tuple(rows),
        gate=gate,
        tiers=tuple(
            _tier(table, rows, undefended, drop, l1, closed=bool(blockers)) for drop in DROP_CAPS for l1 in L1_CAPS
        ),
        runs_done=len(done),
        runs_planned=len(ids),
        targets=tuple(sorted({run.digest for run in done.values()})),
        blockers=blockers,
        flags=tuple(_table_flags(grid, rows, undefended, done.values())),
    )


def _ids_of(grid: Grid, defense: str) -> set[str]:
    of = {i for i, (_, entry, _) in enumerate(grid.rows) if entry.name == defense}
    return {run for (row, _), runs in grid.runs.items() if row in of for run in runs}


def _only(grid: Grid, rows: Sequence[Row], defense: str) -> Row | None:
    """The row of a control without settings to choose from; None where the table has none."""
    return next((row for row, (_, entry, _) in zip(rows, grid.rows, strict=True) if entry.name == defense), None)


def _row(grid: Grid, position: int, runs: Mapping[str, Run], floor: float) -> Row:
    defense, entry, setting = grid.rows[position]
    columns = grid.table.columns
    cells = [
        [runs[run] for run in grid.runs.get((position, column), ()) if run in runs] for column in range(len(columns))
    ]
    scores = tuple(
        _score(column, cell, grid.runs[position, column], runs, floor) if cell else None
        for column, cell in enumerate(cells)
    )
    ranked = [i for i, column in enumerate(columns) if column.role == "ranked"]
    shares = {i: score.sigma for i in ranked if (score := scores[i]) and score.sigma}
    if any(score.sigma is None for i in ranked if (score := scores[i])):
        shares = {}  # one that nobody knows may be the worst
    worst = max(shares, key=lambda i: shares[i].mean, default=None)
    paid = [cells[i] for i in ranked if cells[i]]
    shifts = [[run.shifted for run in cell if run.shifted] for cell in paid]
    if any(run.shifted is None for cell in paid for run in cell):
        shifts = []  # what some runs did not measure, nobody knows
    latencies = [run.latency for cell in paid for run in cell if run.latency is not None]
    shown = columns[ranked[0] if worst is None else worst] if ranked else None
    return Row(
        defense=defense,
        setting=setting.spec,
        scores=scores,
        worst=worst,
        worst_cases=worst_cases(shares),
        complete=all((score := scores[i]) is not None and score.n == len(grid.table.seeds) for i in ranked),
        accuracy=min((_mean(run.defended_accuracy for run in cell) for cell in paid), default=None),
        drop=_largest(_mean(run.accuracy - run.defended_accuracy for run in cell) for cell in paid),
        l1=_largest(_mean(run.l1 for run in cell) for cell in paid),
        shifted_drop=_largest(_mean(drop for drop, _ in cell) for cell in shifts if cell),
        shifted_l1=_largest(_mean(l1 for _, l1 in cell) for cell in shifts if cell),
        latency=median(latencies) if latencies else None,
        flags=tuple(sorted({flag for cell in cells for run in cell for flag in run.flags})),
        reproduce=command_of(grid.table, entry, [setting], shown.attack, [shown.recovery]) if shown else "",
    )


def _score(column: int, cell: Sequence[Run], ids: Sequence[str], runs: Mapping[str, Run], floor: float) -> Score:
    shares = [stolen_share(run.clone_accuracy, run.accuracy, floor) for run in cell]
    reached = [math.inf if run.queries_to_half is None else run.queries_to_half for run in cell]
    curves = [dict(run.curve) for run in cell]
    milestones = sorted(set.intersection(*(set(curve) for curve in curves)))
    seconds = [run.seconds for run in cell if run.seconds is not None]
    return Score(
        column=column,
        n=len(cell),
        sigma=None if any(map(math.isnan, shares)) else estimate(shares),
        clone_accuracy=estimate(run.clone_accuracy for run in cell),
        agreement=estimate(run.agreement for run in cell),
        queries_to_half=None if math.isinf(median(reached)) else median(reached),
        curve=tuple((queries, _mean(curve[queries] for curve in curves)) for queries in milestones),
        band=tuple((min(at), max(at)) for q in milestones if (at := [curve[q] for curve in curves])),
        seconds=median(seconds) if seconds else None,
        run_ids=tuple(run for run in ids if run in runs),
    )


def _mean(values: Iterable[float]) -> float:
    """As `estimate` has it; thousands of milestones need no interval."""
    sample = list(values)
    return math.fsum(sample) / len(sample)


def _largest(values: Iterable[float]) -> float | None:
    """What was lost at most, at least 0; None where nothing was measured."""
    found = max(values, default=None)
    return None if found is None else max(0.0, found)


# ---------------------------------------------------------------------------------------- what can be trusted


def _gate(table: Table, undefended: Row | None, baseline: Baseline | None) -> Iterator[GateLine]:
    """A line for each ranked attack as it is, without recovery."""
    tested = [
        i
        for i, column in enumerate(table.columns)
        if column.role == "ranked" and column.resolved_recovery.name == "none"
    ]
    for i in tested:
        column, score = table.columns[i], undefended.scores[i] if undefended else None
        key = (table.target.name, table.budget, "none", column.attack, column.recovery)
        cell = baseline.cell(*key) if baseline else None
        n = score.n if score else len(table.seeds)
        yield GateLine(
            column=i,
            measured=score.clone_accuracy if score else None,
            reference=cell.reference if cell else None,
            threshold=cell.threshold(n, len(tested)) if cell else None,
            holds=score is not None
            and cell is not None
            and score.n == len(table.seeds)
            and cell.verdict(score.clone_accuracy.mean, score.n, len(tested)) == "held",
        )


def _blockers(table: Table, gate: Sequence[GateLine], undefended: Row | None, labels: Row | None) -> Iterator[str]:
    if not gate:
        yield "no attack without recovery could be compared with its reference strength"
    for line in gate:
        if not line.holds:
            yield f"{table.columns[line.column].label}: {gate_text(line, len(table.seeds))}"
    for name, row in (("none", undefended), ("label_only", labels)):
        if row is None:
            yield f"the table has no row {name}"
        elif not row.complete:
            yield f"runs of the row {name} are missing"
        elif row.worst is None:
            yield f"the row {name}: {NOTHING_TO_STEAL}"


def gate_text(line: GateLine, seeds: int) -> str:
    """What came of one attack at the gate, in words.

    Args:
        seeds: how many the suite asks for.
    """
    if line.measured is None or line.measured.n < seeds:
        return "runs on the undefended target are missing"
    if line.reference is None:
        return "the baseline has no reference for it"
    if line.holds:
        return "reaches its reference strength"
    return "weaker than its reference" if line.measured.mean < line.reference.mean else "suspiciously strong"


def _compared(entry: DefenseEntry, row: Row, labels: Row | None) -> Row:
    """The row, with a flag if it does what no defense that keeps the top class can do."""
    mine, theirs = worst_share(row), worst_share(labels) if labels else None
    if entry.family == "control" or not entry.argmax_preserving or mine is None or theirs is None:
        return row
    if not (row.complete and labels and labels.complete and told_apart(mine, theirs)):
        return row
    flag = (
        "scores better than label_only, which no defense that keeps the top class can: the suite's attacks do not get "
        "out of its answers what is in them"
    )
    return replace(row, flags=(*row.flags, flag))


def _table_flags(grid: Grid, rows: Sequence[Row], undefended: Row | None, runs: Iterable[Run]) -> Iterator[str]:
    yield from weights_attacked(grid.table, runs)
    bare = worst_share(undefended) if undefended and undefended.complete else None
    for row, (_, entry, _) in zip(rows, grid.rows, strict=True):
        mine = worst_share(row)
        if entry.name != "temperature" or not row.complete or mine is None or bare is None:
            continue
        if told_apart(mine, bare) or told_apart(bare, mine):
            yield f"{row.setting} does not score as none, which an attack that inverts it would bring about"


# -------------------------------------------------------------------------------------------------- the ranking


def worst_share(row: Row) -> Estimate | None:
    """The stolen share that a setting is judged by: its worst case; None if there is none yet."""
    score = None if row.worst is None else row.scores[row.worst]
    return score.sigma if score else None


def _tier(table: Table, rows: Sequence[Row], undefended: Row | None, drop: float, l1: float, *, closed: bool) -> Tier:
    placed = [_place(i, entry, rows, drop, l1, closed=closed) for i, entry in enumerate(table.defenses)]
    placed = [one for family in FAMILIES for one in _rank(_members(table, placed, family), rows)]
    judged = [
        rows[one.row] for one in placed if one.row is not None and table.defenses[one.defense].family != "control"
    ]
    attacks = attack_lines(table.columns, judged, undefended)
    return Tier(drop=drop, l1=l1, placed=tuple(placed), attacks=tuple(attacks))


def _members(table: Table, placed: Iterable[Placed], family: Family) -> list[Placed]:
    return [one for one in placed if table.defenses[one.defense].family == family]


def _place(defense: int, entry: DefenseEntry, rows: Sequence[Row], drop: float, l1: float, *, closed: bool) -> Placed:
    """A defense with its best setting. `_rank` ranks those to whom nothing is in the way: their ``why`` is empty."""
    mine = [i for i, row in enumerate(rows) if row.defense == defense]
    fits = [(share.mean, i) for i in mine if meets(rows[i], drop, l1) and (share := worst_share(rows[i]))]
    missing = not all(rows[i].complete for i in mine)
    undefined = not missing and any(worst_share(rows[i]) is None for i in mine)
    if not fits:
        unmeasured = not missing and any(rows[i].shifted_drop is None for i in mine)
        beyond = "costs on the shifted copy were not measured" if unmeasured else "no setting meets both caps"
        why = NOTHING_TO_STEAL if undefined else beyond
        return Placed(defense=defense, row=None, rank=None, why="runs are missing" if missing else why)
    why = (
        "control"
        if entry.family == "control"
        else "nothing is ranked in this table yet"
        if closed
        else "runs of its sweep are missing"
        if missing
        else NOTHING_TO_STEAL
        if undefined
        else ""
    )
    return Placed(defense=defense, row=min(fits)[1], rank=None, why=why)


def meets(row: Row, drop: float, l1: float) -> bool:
    """Whether a setting is complete and within both caps, on the test set and on its shifted copy: a cost that was not
    measured, as records of before schema version 4 lack the shifted ones, is within none."""
    paid = ((row.drop, drop), (row.l1, l1), (row.shifted_drop, drop), (row.shifted_l1, l1))
    return row.complete and all(cost is not None and cost <= cap + ROUNDING for cost, cap in paid)


def _rank(placed: Iterable[Placed], rows: Sequence[Row]) -> list[Placed]:
    """One family: the ranked ones from the best to the worst, then the others alike."""

    def share(one: Placed) -> Estimate:
        return (None if one.row is None else worst_share(rows[one.row])) or Estimate(math.inf, None, 0)

    ordered = sorted(placed, key=lambda one: (bool(one.why), by_mean(share(one)), one.defense))
    able = [one for one in ordered if not one.why]
    ranked = [replace(one, rank=rank) for one, rank in zip(able, ranks([share(one) for one in able]), strict=True)]
    return ranked + ordered[len(able) :]
