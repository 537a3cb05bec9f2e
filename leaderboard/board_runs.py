"""The runs that a board asks for, and what it takes from their records."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from .curve import kept_accuracy
from .record import Record, run_id
from .scoring import estimate
from .suites import DefenseEntry, DefenseSetting, Table


class Run(NamedTuple):
    """What the board takes from one record."""

    created: str
    accuracy: float
    target_seed: int
    digest: str
    clone_accuracy: float
    """Of the clone that the attacker is left with: see `curve.kept_accuracy`."""
    agreement: float
    defended_accuracy: float
    l1: float
    shifted: tuple[float, float] | None
    """Loss of accuracy and mean L1 on the shifted copy of the test set; None where they were not measured."""
    queries_to_half: int | None
    seconds: float | None
    latency: float | None
    flags: tuple[str, ...]
    curve: tuple[tuple[int, float], ...]


class Grid(NamedTuple):
    """The runs that a table asks for."""

    table: Table
    rows: list[tuple[int, DefenseEntry, DefenseSetting]]
    """Each with its defense's position."""
    runs: dict[tuple[int, int], tuple[str, ...]]
    """Identities of the runs, one a seed, by positions of row and column."""


def enter(table: Table, entries: Sequence[DefenseEntry]) -> Table:
    """The table with more defenses. Raises `UsageError` for two of one name."""
    defenses = (*table.defenses, *entries)
    names = [entry.name for entry in defenses]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"more than one defense of {table.target.name} is called {', '.join(twice)}")
    return table.model_copy(update={"defenses": defenses}) if entries else table


def grid_of(protocol: str, table: Table) -> Grid:
    """The identities of all runs of a table."""
    rows = [(i, entry, setting) for i, entry in enumerate(table.defenses) for setting in entry.settings]
    row_of = {id(setting): i for i, (_, _, setting) in enumerate(rows)}
    column_of = {id(column): i for i, column in enumerate(table.columns)}
    runs = {
        (row_of[id(setting)], column_of[id(column)]): tuple(
            run_id(table.spec(protocol, column, entry, setting, seed)) for seed in table.seeds
        )
        for column, entry, setting in table.cells()
    }
    return Grid(table, rows, runs)


def newest(records: Iterable[Record], asked: set[str]) -> dict[str, Run]:
    """The runs that count, by identity."""
    runs: dict[str, Run] = {}
    for record in records:
        run = _measure(record) if record.run_id in asked else None
        if run is not None:
            other = runs.get(record.run_id)
            runs[record.run_id] = run if other is None else max(other, run, key=_precedence)
    return runs


def _precedence(run: Run) -> tuple[str, str]:
    """Equally new records are told apart by what they say."""
    return run.created, json.dumps(run)


def _measure(record: Record) -> Run | None:
    target, stolen, paid, kept = record.target, record.stolen, record.paid, kept_accuracy(record)
    if record.status != "done" or target is None or stolen is None or paid is None or kept is None:
        return None
    spent, timing = record.budget.spent, record.timing
    return Run(
        created=timing.created_utc,
        accuracy=target.accuracy,
        target_seed=record.spec.target_seed,
        digest=target.digest,
        clone_accuracy=kept,
        agreement=stolen.agreement,
        defended_accuracy=paid.defended_accuracy,
        l1=paid.l1.mean,
        shifted=(paid.shifted.undefended - paid.shifted.defended, paid.shifted.l1) if paid.shifted else None,
        queries_to_half=stolen.queries_to_half,
        seconds=1e5 * timing.attack / spent if spent else None,
        latency=timing.latency_ratio.get("256"),
        flags=tuple(record.flags),
        curve=tuple((point.queries, point.clone_accuracy) for point in record.curve),
    )


def floor_of(grid: Grid, runs: Mapping[str, Run]) -> tuple[float, tuple[str, ...]]:
    """Accuracy without asking the victim, and what is missing to know it.

    A floor that lacks seeds does not count: the share is then too large rather than too small.
    """
    floor, missing = 1 / grid.table.num_classes, []
    for (_, column), ids in grid.runs.items():
        if grid.table.columns[column].role != "floor":
            continue
        done = [runs[run].clone_accuracy for run in ids if run in runs]
        if len(done) == len(ids):
            floor = max(floor, estimate(done).mean)
        else:
            missing.append(f"runs of the floor {grid.table.columns[column].label} are missing")
    return floor, tuple(missing)


def weights_attacked(table: Table, runs: Iterable[Run]) -> Iterator[str]:
    """What to know of a table whose runs did not all attack the weights that they should have, or the same ones."""
    attacked = Counter((run.target_seed, run.digest) for run in runs)
    others = sum(n for (seed, digest), n in attacked.items() if table.weights.get(seed, digest) != digest)
    if others:
        yield (
            f"{others:,} of {attacked.total():,} runs attacked other weights than those that come with msbench: the "
            "same copies, trained on another machine"
        )
    for seed, times in sorted(Counter(seed for seed, _ in attacked if seed not in table.weights).items()):
        if times > 1:
            copy = f"copy {seed} of the target" if table.copies else "the target"
            yield f"not all runs attacked the same weights: {copy} was trained {times} times"


def command_of(
    table: Table,
    entry: DefenseEntry,
    settings: Iterable[DefenseSetting],
    attack: str,
    recoveries: Iterable[str],
    store: Path | None = None,
) -> str:
    """What to type to make the runs of one attack against settings of a defense, with all seeds.

    Where the defense or the target takes the attack's seed too, each seed needs a command.
    """
    options = [
        ("--target", table.target.name),
        *(("--defense", setting.spec) for setting in settings),
        ("--attack", attack),
        *(("--recovery", recovery) for recovery in recoveries),
        ("--budget", str(table.budget)),
        *([("--clone", table.clone)] if table.clone else []),
        *([("--store", str(store))] if store else []),
    ]
    command = "msbench run " + " ".join(f"{name} {shlex.quote(value)}" for name, value in options)
    same = ["--defense-seed"] * entry.stochastic + ["--target-seed"] * table.copies
    if same:
        seeds = " ".join(map(str, table.seeds))
        options_of_one = " ".join(f"{name} $seed" for name in ["--seed", *same])
        return f"for seed in {seeds}; do {command} {options_of_one}; done"
    return command + "".join(f" --seed {seed}" for seed in table.seeds)
