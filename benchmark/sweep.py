"""Sweeps: the runs of a suite that are asked for, what is known of each, and what the rest will cost."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median
from typing import Literal, NamedTuple

from ..components import parse_spec
from ..errors import UnknownName, UsageError
from ..leaderboard.record import Record
from ..leaderboard.store import Store, record_files, relative_path, run_named
from ..leaderboard.suites import Column, DefenseEntry, DefenseSetting, FrozenSuite, Table
from .launchers.base import Due, reason_of, stamp_of
from .spec import Cell
from .suite import with_defense

State = Literal["done", "failed", "unfinished", "missing"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the store knows of a run."""

    cell: Cell
    state: State
    stamp: int | None = None
    """When the record in its place was written, by `stamp_of`; asked only if it failed."""
    seconds: float | None = None
    """What it took; None unless it is done."""
    reason: str = ""
    """Why it failed."""


class _Seen(NamedTuple):
    """What a sweep needs to know of a record."""

    run_id: str
    done: bool
    seconds: float
    reason: str
    """Why it failed; empty unless it did."""


def look(cells: Sequence[Cell], store: Store) -> list[Standing]:
    """Look runs up, in copies elsewhere in the store as well. One that is unfinished has saved state."""
    begun = {path.stem for path in store.state_path("any").parent.glob("*.pt")}
    wanted = {cell.run_id for cell in cells}
    stamps = {path: stamp_of(path) for path in record_files(store.root) if run_named(path) in wanted}
    found: dict[str, list[_Seen]] = defaultdict(list)
    for seen in store.each(_seen, wanted):  # what was written since the stamps is newer
        found[seen.run_id].append(seen)

    def standing(cell: Cell) -> Standing:
        record = max(found[cell.run_id], key=lambda each: each.done, default=None)
        if record is not None and record.done:
            return Standing(cell=cell, state="done", seconds=record.seconds)
        if record is not None and record.reason:
            stamp = stamps.get(store.root / relative_path(cell.info))
            return Standing(cell=cell, state="failed", stamp=stamp, reason=record.reason)
        return Standing(cell=cell, state="unfinished" if cell.run_id in begun else "missing")

    return list(map(standing, cells))


def _seen(record: Record) -> _Seen:
    return _Seen(
        run_id=record.run_id,
        done=record.status == "done",
        seconds=record.timing.wall,
        reason=reason_of(record) if record.status == "failed" else "",
    )


def due(standings: Iterable[Standing], *, retry_failed: bool) -> list[Due]:
    """The runs to be placed: what is missing or unfinished, and what failed if that is asked for."""
    wanted = {"unfinished", "missing"} | ({"failed"} if retry_failed else set())
    return [Due(cell=each.cell, stamp=each.stamp) for each in standings if each.state in wanted]


# --------------------------------------------------------------------------------------------------- choosing


def choose(
    suite: FrozenSuite, *, defenses: Sequence[str] = (), attacks: Sequence[str] = (), seeds: Sequence[int] = ()
) -> FrozenSuite:
    """The part of a suite that is asked for; nothing asked for is everything.

    Args:
        defenses: names and settings, with wildcards: ``topk``, ``topk:k=3``, ``mad*``. One that the suite does not
            hold enters it at its declared sweep: ``path/to/file.py:MyDefense``.
        attacks: those of columns: ``dualstudent``, ``df*``, or with the recovery ``dualstudent + argmax``.
        seeds: the suite's; others are not part of it.

    Raises `UnknownName` for a pattern that matches nothing, and as `benchmark.suite.defense_entry`.
    """
    for pattern in defenses:
        if not _held(suite, pattern) and not any(sign in pattern for sign in "*?["):
            suite = with_defense(suite, pattern)
    return part(suite, defenses=defenses, attacks=attacks, seeds=seeds)


def part(
    suite: FrozenSuite, *, defenses: Sequence[str] = (), attacks: Sequence[str] = (), seeds: Sequence[int] = ()
) -> FrozenSuite:
    """What patterns name of a suite, as `choose` reads them. Raises `UnknownName` for one that matches nothing."""
    columns = {column.label: column for table in suite.tables for column in table.columns}
    _insist("defense", defenses, {entry.name for entry, _ in _settings(suite)}, lambda each, _: _held(suite, each))
    _insist("attack", attacks, columns, lambda pattern, label: _names(pattern, columns[label]))
    _insist("seed", map(str, seeds), {str(seed) for table in suite.tables for seed in table.seeds}, str.__eq__)
    tables = [left for table in suite.tables if (left := _choose(table, defenses, attacks, seeds)) is not None]
    return suite.model_copy(update={"tables": tuple(tables)})


def expect_runs(cells: Sequence[Cell], suite: FrozenSuite, patterns: Iterable[str]) -> None:
    """Raise `UsageError` where patterns, each of which names something of a suite, leave nothing of it together."""
    if not cells:
        raise UsageError(
            f"suite {suite.name} has no run of {', '.join(patterns)}: it holds each, but they never meet. See msbench "
            "suite show for its tables; columns that are not ranked meet the defense none alone"
        )


def _choose(table: Table, defenses: Sequence[str], attacks: Sequence[str], seeds: Sequence[int]) -> Table | None:
    """The part of a table, or None if nothing is left of it."""
    entries = []
    for entry in table.defenses:
        kept = tuple(
            setting
            for setting in entry.settings
            if not defenses or any(_matches(pattern, entry, setting) for pattern in defenses)
        )
        if kept:
            entries.append(entry.model_copy(update={"settings": kept}))
    columns = [c for c in table.columns if not attacks or any(_names(pattern, c) for pattern in attacks)]
    left = [seed for seed in table.seeds if not seeds or seed in seeds]
    if not (entries and columns and left):
        return None
    return table.model_copy(update={"defenses": tuple(entries), "columns": tuple(columns), "seeds": tuple(left)})


def _settings(suite: FrozenSuite) -> Iterator[tuple[DefenseEntry, DefenseSetting]]:
    for table in suite.tables:
        for entry in table.defenses:
            for setting in entry.settings:
                yield entry, setting


def _held(suite: FrozenSuite, pattern: str) -> bool:
    return any(_matches(pattern, entry, setting) for entry, setting in _settings(suite))


def _matches(pattern: str, entry: DefenseEntry, setting: DefenseSetting) -> bool:
    """Whether a pattern names a defense, or one setting of it."""
    return any(fnmatchcase(name, pattern) or name == pattern for name in (entry.name, setting.spec))


def _names(pattern: str, column: Column) -> bool:
    """Whether a pattern names a column: its attack, whatever the recovery, or both."""
    return any(fnmatchcase(name, pattern) for name in (column.attack, parse_spec(column.attack)[0], column.label))


def _insist(kind: str, patterns: Iterable[str], known: Iterable[str], fits: Callable[[str, str], bool]) -> None:
    offered = list(known)
    for pattern in patterns:
        if not any(fits(pattern, name) for name in offered):
            raise UnknownName(kind, pattern, offered, hint="the suite has no other")


# --------------------------------------------------------------------------------------------------- the cost


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What runs will take, judged by like ones that are done."""

    seconds: float
    """Of computing, in sum."""
    unknown: int
    """Runs that nothing is known about, and that are not in the sum."""


def estimate(standings: Sequence[Standing], runs: Sequence[Due]) -> Estimate:
    """The time of runs, from those that are done: of the same cell, else of the same attack, recovery and budget."""
    known: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for each in standings:
        if each.seconds is not None:
            for kind in _kinds(each.cell):
                known[kind].append(each.seconds)
    typical = {kind: median(seconds) for kind, seconds in known.items()}
    guesses = [next((typical[kind] for kind in _kinds(run.cell) if kind in typical), None) for run in runs]
    found = [guess for guess in guesses if guess is not None]
    return Estimate(seconds=sum(found), unknown=len(guesses) - len(found))


def _kinds(cell: Cell) -> Iterator[tuple[str, ...]]:
    """What a run is like, the most alike first."""
    asked = cell.request
    like = (asked.target, str(asked.budget), asked.attack, asked.recovery)
    yield (*like, asked.defense)
    yield like
