"""The baseline: how strong each attack was when somebody looked, seed by seed, and what counts as a change.

A cell of a suite is compared with its baseline two-sided: an attack that got weaker is a regression, and one that got
suspiciously stronger may have seen what it must not see. How accurate the clone is says little where an attack has a
strength to spare, so what tells how it got there is compared too: how soon, how close the clone's answers are, and
what was asked about.

A metric has changed where its new seeds without an odd one lie beyond limits (`limits`), at a false-alarm rate that is
divided among all that is compared (Bonferroni). A cell is judged only where every run that was planned is done: those
that failed may be just those that would have told.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ..errors import UnknownName, UsageError
from .limits import DISTANCE, FEWEST_NEW, FEWEST_OLD, LEAST_SPREAD, PLAIN, SHARE, Scale, Span, limits, span
from .record import Record
from .scoring import Estimate, estimate

FOLDER = Path(__file__).parent / "baselines"
"""Where the committed baselines lie, ``NAME.json`` for the suite of that name."""

FALSE_ALARMS = 0.01
"""How often, at most, an unchanged tree may fail a whole comparison."""
NORMAL_FALSE_ALARMS = FALSE_ALARMS / 8
"""How often it would if seeds were normal. They are not quite: resampled, those of the committed baselines fail up to
six times as often (``tests/leaderboard/test_false_alarms.py``)."""

Metric = Literal["clone_accuracy", "area_under_curve", "kl", "label_entropy", "query_distance"]
Verdict = Literal["held", "weaker", "stronger", "changed"]

STRENGTH: Mapping[Metric, int] = {
    "clone_accuracy": 1,
    "area_under_curve": 1,
    "kl": -1,
    "label_entropy": 0,
    "query_distance": 0,
}
"""What is compared, and whether more of it is a stronger attack (1), a weaker one (-1), or just another (0)."""

SCALES: Mapping[Metric, Scale] = {
    "clone_accuracy": SHARE,
    "area_under_curve": SHARE,
    "kl": DISTANCE,
    "label_entropy": PLAIN,
    "query_distance": PLAIN,
}
"""Where the seeds of each spread evenly."""

Key = tuple[str, int, str, str, str]
"""What a cell is of: target, budget, defense, attack and recovery, as the suite writes them."""
Values = tuple[FiniteFloat, ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BaselineCell(_Part):
    """What one cell reached, seed by seed."""

    target: str
    budget: int
    defense: str
    """As the suite writes it."""
    attack: str
    recovery: str
    seeds: tuple[int, ...]
    clone_accuracy: Annotated[Values, Field(min_length=2)]
    """One a seed."""
    area_under_curve: Values = ()
    """One a seed, as all that follows; empty where it is not known, and then not compared."""
    kl: Values = ()
    label_entropy: Values = ()
    query_distance: Values = ()
    spent: int | None = None
    """Queries that every seed spent; None where they differ, and then not compared."""
    digests: tuple[str, ...] = ()
    """Of the weights that were attacked."""

    @model_validator(mode="after")
    def _one_a_seed(self) -> "BaselineCell":
        for metric in STRENGTH:
            count = len(self.values(metric))
            if count != len(self.seeds) and (count or metric == "clone_accuracy"):
                raise ValueError(f"{metric}: {count} values of {len(self.seeds)} seeds")
        return self

    @property
    def key(self) -> Key:
        """What the cell is of."""
        return self.target, self.budget, self.defense, self.attack, self.recovery

    @property
    def reference(self) -> Estimate:
        """Mean clone accuracy and its 95 % interval."""
        return estimate(self.clone_accuracy)

    def values(self, metric: Metric) -> Values:
        """A metric's values, one a seed."""
        values: Values = getattr(self, metric)
        return values

    def limits(self, metric: Metric, new: int, comparisons: int) -> Span:
        """What the span of a metric's new seeds is not beyond while nothing has changed.

        Args:
            new: number of new seeds, at least 3.
            comparisons: how many metrics of how many cells are compared at once; they share the false-alarm rate.

        Raises `UsageError` for a metric that is not known of five seeds at least.
        """
        values = self.values(metric)
        if len(values) < FEWEST_OLD:
            raise UsageError(
                f"the baseline knows {metric} of {len(values)} seeds for {_in_words(self.key)}, and it takes "
                f"{FEWEST_OLD}: make a new one with --update"
            )
        return limits(np.array(values), new, NORMAL_FALSE_ALARMS / comparisons, SCALES[metric])

    def threshold(self, new: int, comparisons: int) -> float:
        """How far the mean clone accuracy of ``new`` seeds may be from the baseline's, if seeds are normal.

        That is half of a prediction interval (Student's t). For boards and for single runs, which compare means; one
        odd seed can move a mean too far, and new seeds are judged by `limits`.

        Args:
            new: number of new seeds, at least 1.
            comparisons: how many means are compared at once; they share the false-alarm rate.
        """
        from scipy.special import stdtrit

        values = self.clone_accuracy
        old = len(values)
        mean = math.fsum(values) / old
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (old - 1))
        quantile = float(stdtrit(old - 1, 1 - FALSE_ALARMS / (2 * comparisons)))
        return quantile * max(spread, LEAST_SPREAD) * math.sqrt(1 / new + 1 / old)

    def verdict(self, measured: float, new: int, comparisons: int) -> Verdict:
        """What a mean clone accuracy over ``new`` seeds says, by the `threshold`."""
        difference = measured - self.reference.mean
        if abs(difference) <= self.threshold(new, comparisons):
            return "held"
        return "stronger" if difference > 0 else "weaker"


class Baseline(_Part):
    """All cells of one suite."""

    suite: str
    protocol: str
    cells: tuple[BaselineCell, ...]

    def cell(self, target: str, budget: int, defense: str, attack: str, recovery: str) -> BaselineCell | None:
        """The cell of that name, or None."""
        key = target, budget, defense, attack, recovery
        return next((cell for cell in self.cells if cell.key == key), None)

    def check(self, keys: Iterable[Key]) -> None:
        """Raise `UsageError` for a cell that nothing can be compared with, before hours are spent on its runs."""
        for key in dict.fromkeys(keys):
            cell = self.known(key)
            for metric in STRENGTH:
                if cell.values(metric):
                    cell.limits(metric, FEWEST_NEW, 1)

    def known(self, key: Key) -> BaselineCell:
        """The cell of that name. Raises `UsageError` where there is none."""
        cell = self.cell(*key)
        if cell is None:
            raise UsageError(f"the baseline of {self.suite} has no {_in_words(key)}: make a new one with --update")
        return cell


def path_of(name: str) -> Path:
    """Where the baseline of that name lies, or the path itself that ends in ``.json``."""
    return Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"


def find_baseline(name: str) -> Baseline | None:
    """The committed baseline of a suite, or None if nobody has made one. Raises `UsageError` as `load_baseline`."""
    return load_baseline(name) if (FOLDER / f"{name}.json").is_file() else None


def load_baseline(name: str) -> Baseline:
    """Read the committed baseline of a suite, or the file of a path that ends in ``.json``.

    Raises `UnknownName` if there is none, and `UsageError` for a file that is not usable.
    """
    path = path_of(name)
    if not path.is_file():
        raise UnknownName("baseline", name, sorted(known.stem for known in FOLDER.glob("*.json")))
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the baseline {path}: {error.strerror or error}") from None
    except ValidationError as error:
        raise UsageError(f"the baseline {path} is not usable: {error}") from None


def dumps(baseline: Baseline) -> str:
    """The canonical text of a baseline."""
    return baseline.model_dump_json(indent=2, exclude_defaults=True) + "\n"


# ------------------------------------------------------------------------------------------------ comparing


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that was asked for, and what came of it."""

    cell: Key
    seed: int
    record: Record | None
    """None if it left none."""
    reason: str = ""
    """Why it is not done, in one line."""

    @property
    def done(self) -> bool:
        """Whether it left anything to compare."""
        return self.record is not None and self.record.status == "done"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of a cell beside the baseline's, or the queries it spent."""

    cell: Key
    metric: str
    values: tuple[float, ...]
    """One for each seed that is done; empty where one of them has none."""
    measured: tuple[float, float] | None
    """Their span, of queries from the fewest to the most; None of fewer than two values."""
    reference: float
    """Mean over the baseline's seeds."""
    limits: tuple[float, float]
    """A metric has changed where the span lies beyond these, queries where any seed's differ."""
    done: int
    """New seeds that are done."""
    planned: int
    """New seeds that were asked for."""
    verdict: Verdict | Literal["missing"]
    """``missing`` where not all is done: nothing is judged by the seeds that are left."""

    @property
    def holds(self) -> bool:
        """Whether all seeds are there, and nothing has changed that seeds do not explain."""
        return self.verdict == "held"


def as_baseline(suite: str, protocol: str, runs: Iterable[Planned], known: Baseline | None = None) -> Baseline:
    """A baseline of the runs that are done, and of what another of the same suite knows of cells that were not run.

    Raises `UsageError` for a cell with fewer than five seeds.
    """
    cells = []
    for key, group in _grouped(runs).items():
        records = sorted(_done(group), key=lambda record: record.spec.seed)
        _expect_seeds(key, len(records))
        values = {metric: _values(records, metric) for metric in STRENGTH}
        spent = {record.budget.spent for record in records}
        cells.append(
            BaselineCell(
                **dict(zip(("target", "budget", "defense", "attack", "recovery"), key, strict=True)),  # type: ignore[arg-type]
                **values,  # type: ignore[arg-type]
                seeds=tuple(record.spec.seed for record in records),
                spent=spent.pop() if len(spent) == 1 else None,
                digests=tuple(sorted(_weights(records))),
            )
        )
    if known is not None and (known.suite, known.protocol) == (suite, protocol):
        made = {cell.key for cell in cells}
        cells += [cell for cell in known.cells if cell.key not in made]
    return Baseline(suite=suite, protocol=protocol, cells=tuple(cells))


def check_seeds(keys: Iterable[Key]) -> None:
    """Raise `UsageError` for runs of too few seeds to make a baseline of.

    Args:
        keys: the cells that runs are planned of, one a run.
    """
    for key, count in Counter(keys).items():
        _expect_seeds(key, count)


def _expect_seeds(key: Key, count: int) -> None:
    if count < FEWEST_OLD:
        raise UsageError(
            f"{_in_words(key)} has {count}, and a baseline needs {FEWEST_OLD} seeds at least, and twenty to be worth "
            "much: give more with --seed"
        )


def compare(baseline: Baseline, runs: Iterable[Planned]) -> list[Comparison]:
    """Every metric of the cells that runs were planned of, beside the baseline's. It takes three seeds a cell.

    Queries are compared exactly: an attack that leaves some of its budget is another attack. Raises `UsageError` for
    a cell that the baseline does not know, and for one that attacked other weights than the baseline's one copy: how
    much is stolen depends on the copy as well, and the limits come from seeds alone.
    """
    pairs = [(_known(baseline, key, group), group) for key, group in _grouped(runs).items()]
    count = sum(bool(cell.values(metric)) for cell, _ in pairs for metric in STRENGTH)
    return [line for cell, group in pairs for line in _compare_cell(cell, group, count)]


def _known(baseline: Baseline, key: Key, group: Sequence[Planned]) -> BaselineCell:
    """The baseline's cell of that name, if runs may be compared with it."""
    cell = baseline.known(key)
    if len(cell.digests) == 1 and (others := _weights(_done(group)) - set(cell.digests)):
        raise UsageError(
            f"{_in_words(key)} attacked other weights ({min(others)[:12]}…) than the baseline of {baseline.suite} "
            f"({cell.digests[0][:12]}…), and is not to be compared with it: make a new one with --update"
        )
    return cell


def _compare_cell(cell: BaselineCell, group: Sequence[Planned], count: int) -> Iterator[Comparison]:
    records = _done(group)
    complete = len(records) == len(group)
    line = partial(Comparison, cell=cell.key, done=len(records), planned=len(group))
    for metric in STRENGTH:
        if cell.values(metric):
            values, within = _values(records, metric), cell.limits(metric, len(group), count)
            measured = span(np.array(values), SCALES[metric]) if len(values) > 1 else None
            yield line(
                metric=metric,
                values=values,
                measured=measured and _floats(measured),
                reference=estimate(cell.values(metric)).mean,
                limits=_floats(within),
                verdict=_verdict(metric, int(measured.side(within))) if complete and measured else "missing",
            )
    if cell.spent is not None:
        spent = tuple(record.budget.spent for record in records)
        yield line(
            metric="queries",
            values=spent,
            measured=(min(spent), max(spent)) if spent else None,
            reference=cell.spent,
            limits=(cell.spent, cell.spent),
            verdict="missing" if not complete else "held" if set(spent) == {cell.spent} else "changed",
        )


def _floats(ends: Span) -> tuple[float, float]:
    return float(ends.low), float(ends.high)


def _verdict(metric: Metric, side: int) -> Verdict:
    """What it means that new seeds lie above the limits (1), below (-1) or neither (0)."""
    if side == 0:
        return "held"
    return "changed" if STRENGTH[metric] == 0 else "stronger" if STRENGTH[metric] == side else "weaker"


def _grouped(runs: Iterable[Planned]) -> dict[Key, list[Planned]]:
    groups: dict[Key, list[Planned]] = defaultdict(list)
    for run in runs:
        groups[run.cell].append(run)
    return groups


def _done(group: Iterable[Planned]) -> list[Record]:
    return [run.record for run in group if run.done and run.record]


def _weights(group: Iterable[Record]) -> set[str]:
    return {record.target.digest for record in group if record.target}


def _values(group: Sequence[Record], metric: Metric) -> Values:
    """One a record; none at all if one of them lacks it."""
    found = [_value(record, metric) for record in group]
    return tuple(value for value in found if value is not None) if None not in found else ()


def _value(record: Record, metric: Metric) -> float | None:
    part = record.stolen if metric in ("clone_accuracy", "area_under_curve", "kl") else record.diagnostics
    return getattr(part, metric, None)


def _in_words(key: Key) -> str:
    target, budget, defense, attack, recovery = key
    recovered = "" if recovery == "none" else f" + {recovery}"
    return f"{attack}{recovered} against {defense} on {target} at {budget:,} queries"
