"""The sections of pages: attacks a row each, or defenses a row each with their utility and worst case."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .curve import kept_accuracy
from .pages import Machines, Records, Runs, Section, absent, interval, table
from .record import Paid, Record
from .scoring import CHANCE_FLOOR, Cell, estimate
from .texts import MISSING

# ---------------------------------------------------------------------------------------------------- attacks


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack under one condition, beside what others have measured."""

    runs: Runs
    published: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class AttackSection(Section):
    """One table with a row for each attack; columns that would say the same in every row are left out."""

    rows: Sequence[AttackRow]

    @property
    def runs(self) -> list[Runs]:
        """A cell each row."""
        return [row.runs for row in self.rows]

    def tables(self, records: Records, machines: Machines) -> Iterator[str]:
        """The table."""
        columns: dict[str, Callable[[AttackRow], str]] = {"attack": lambda row: row.runs.attack}
        if len({runs.budget for runs in self.runs}) > 1:
            columns["queries"] = lambda row: f"{row.runs.budget:,}"
        if {runs.defense for runs in self.runs} != {"none"}:
            columns["defense"] = lambda row: row.runs.defense
        if {runs.recovery for runs in self.runs} != {"none"}:
            columns["recovery"] = lambda row: row.runs.recovery
        words = len(columns)
        columns |= _attack_numbers(records, machines)
        numbers = len(columns) - words
        if any(row.published for row in self.rows):
            columns["published elsewhere"] = lambda row: row.published or MISSING
        lines = [[show(row) for show in columns.values()] for row in self.rows]
        yield table(list(columns), lines, right=range(words, words + numbers))

    def notes(self) -> Iterator[str]:
        """What the plan says about rows."""
        return (f"{row.runs.name}: {row.note}" for row in self.rows if row.note)

    def remark(self, score: Cell) -> str:
        """All but what is wrong with stolen shares, of which there are none here."""
        return "" if score.note == CHANCE_FLOOR else score.note


def _seconds(record: Record) -> float:
    """Of the attack and its measurement: clones that are trained for a milestone are trained in either."""
    return record.timing.attack + record.timing.evaluation


def _attack_numbers(records: Records, machines: Machines) -> dict[str, Callable[[AttackRow], str]]:
    def clone_accuracy(row: AttackRow) -> str:
        score = row.runs.score(records)
        return interval(score.clone_accuracy) if score else absent(row.runs, records)

    def lowest(row: AttackRow) -> str:
        kept = map(kept_accuracy, row.runs.done(records))
        reached = [accuracy for accuracy in kept if accuracy is not None]
        return f"{100 * min(reached):.1f}" if reached else MISSING

    def agreement(row: AttackRow) -> str:
        score = row.runs.score(records)
        return interval(score.agreement) if score else MISSING

    return {
        "clone accuracy %": clone_accuracy,
        "lowest seed": lowest,
        "agreement %": agreement,
        "n": lambda row: _count(row.runs, records),
        "run, s": lambda row: machines.means(row.runs.done(records), _seconds),
    }


def _count(runs: Runs, records: Records) -> str:
    done = len(runs.done(records))
    return f"{done}" if done == len(runs.specs) else f"{done} of {len(runs.specs)}"


# --------------------------------------------------------------------------------------------------- defenses


@dataclass(frozen=True, kw_only=True)
class DefenseRow:
    """One setting of a defense against the attacks of its section."""

    defense: str
    """Its name and what it is set to."""
    family: str
    """Families are never compared in one table."""
    recovery: str
    """The recovery made for it, if any."""
    columns: Mapping[str, Runs]
    """By header; a header of the section that is not here does not apply."""
    note: str = ""

    @property
    def runs(self) -> list[Runs]:
        """The row's cells."""
        return list(self.columns.values())


@dataclass(frozen=True, kw_only=True)
class DefenseSection(Section):
    """For each family of defenses two tables: what a defense costs and its worst case, and what was stolen."""

    headers: Sequence[str]
    """Of the attacks, in order."""
    rows: Sequence[DefenseRow]

    @property
    def runs(self) -> list[Runs]:
        """The cells, row by row."""
        return [runs for row in self.rows for runs in row.runs]

    def tables(self, records: Records, machines: Machines) -> Iterator[str]:
        """Two tables a family."""
        families: dict[str, list[DefenseRow]] = defaultdict(list)
        for row in self.rows:
            families[row.family].append(row)
        several = len(self.headers) > 1
        stolen = "worst case: stolen share" if several else "stolen share"
        for family, rows in families.items():
            yield f"**{family.capitalize()}: what it costs, and {'its worst case' if several else 'what is stolen'}**"
            lines = [[*_cost_line(row, records, machines), _worst_case(row, records)] for row in rows]
            yield table([*_COSTS, stolen], lines, right=range(1, len(_COSTS)))
            yield f"**{family.capitalize()}: clone accuracy %**"
            header = ["defense", *self.headers, "its own recovery"]
            lines = [self._stolen_line(row, records) for row in rows]
            yield table(header, lines, right=range(1, len(header) - 1))

    def _stolen_line(self, row: DefenseRow, records: Records) -> list[str]:
        shown = [_stolen(row.columns.get(header), records) for header in self.headers]
        return [row.defense, *shown, row.recovery or MISSING]

    def notes(self) -> Iterator[str]:
        """What the plan says about rows."""
        return (f"{row.defense}: {row.note}" for row in self.rows if row.note)

    def remark(self, score: Cell) -> str:
        """Everything."""
        return score.note


TIMED_IN_TURNS = "2026-11-29T22:08"
"""From when on a record's latency ratio compares two paths that were timed in turns, in UTC. Those from before are off
by up to three, and not shown."""
_COSTS = [
    "defense",
    "accuracy %",
    "L1 mean",
    "L1 p95",
    "L1 max",
    "argmax changed %",
    "NLL",
    "ECE %",
    "latency ratio at 1",
    "latency ratio at 256",
    "runs",
]


def _cost_line(row: DefenseRow, records: Records, machines: Machines) -> list[str]:
    done = [record for runs in row.runs for record in runs.done(records)]
    count = f"{len(done)} of {sum(len(runs.specs) for runs in row.runs)}"
    if not done:
        return [row.defense, *[MISSING] * (len(_COSTS) - 2), count]

    def worst(value: Callable[[Paid], float], choose: Callable[[list[float]], float] = max) -> float:
        """The worst of the cells' means: what an attack's traffic does to a defense must not be averaged away."""
        paid = [[record.paid for record in runs.done(records) if record.paid] for runs in row.runs]
        return choose([estimate(map(value, each)).mean for each in paid if each])

    return [
        row.defense,
        f"{100 * worst(lambda paid: paid.defended_accuracy, min):.1f}",
        f"{worst(lambda paid: paid.l1.mean):.3f}",
        f"{worst(lambda paid: paid.l1.p95):.3f}",
        f"{max(record.paid.l1.max for record in done if record.paid):.3f}",
        f"{100 * worst(lambda paid: paid.argmax_changed):.1f}",
        f"{worst(lambda paid: paid.nll):.3f}",
        f"{100 * worst(lambda paid: paid.ece):.1f}",
        machines.medians(done, _latency("1")),
        machines.medians(done, _latency("256")),
        count,
    ]


def _latency(size: str) -> Callable[[Record], float | None]:
    def ratio(record: Record) -> float | None:
        return record.timing.latency_ratio.get(size) if record.timing.created_utc >= TIMED_IN_TURNS else None

    return ratio


def _worst_case(row: DefenseRow, records: Records) -> str:
    """The largest stolen share among the ranked attacks, and whose it is; a lower bound while others are missing.

    One of fewer seeds than are due bounds nothing: they are given in its stead.
    """
    if not any(runs.done(records) for runs in row.runs):
        return "missing"
    scores = {header: runs.score(records) for header, runs in row.columns.items()}
    shares = {
        header: score.stolen_share for header, score in scores.items() if score and score.ranked and score.stolen_share
    }
    if not shares:
        return MISSING
    worst = max(shares, key=lambda header: shares[header].mean)
    share = shares[worst]
    whole = all(
        score is not None and score.n == len(row.columns[header].specs) and (score.stolen_share or not score.ranked)
        for header, score in scores.items()
    )
    due = len(row.columns[worst].specs)
    bound, some = ("" if whole else "≥ ", "") if share.n == due else ("", f" (n={share.n})")
    half = "" if share.half is None else f" ± {share.half:.2f}"
    return f"{bound}{share.mean:.2f}{half}{some} {worst}"


def _stolen(runs: Runs | None, records: Records) -> str:
    if runs is None:
        return MISSING
    score = runs.score(records)
    if score is None:
        return absent(runs, records)
    some = "" if score.n == len(runs.specs) else f" (n={score.n})"
    return interval(score.clone_accuracy) + some
