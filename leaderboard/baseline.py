"""The baseline: how strong each attack was when somebody looked, seed by seed, and what counts as a change.

A cell of a suite is compared with its baseline two-sided: an attack that got weaker is a regression, and one that got
suspiciously stronger may have seen what it must not see. How accurate the clone is says little where an attack has a
strength to spare, so what tells how it got there is compared too: how soon, how close the clone's answers are, and
what was asked about.

The threshold is that of a prediction: the mean of m new seeds differs from the mean of n old ones by no more than
``t s sqrt(1/m + 1/n)``, with Student's t at a false-alarm rate that is divided among all that is compared (Bonferroni).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ..errors import UnknownName, UsageError
from .record import Record
from .scoring import Estimate, estimate

FOLDER = Path(__file__).parent / "baselines"
"""Where the committed baselines lie, ``NAME.json`` for the suite of that name."""

FALSE_ALARMS = 0.01
"""How often, at most, an unchanged tree may fail a whole comparison."""
LEAST_SPREAD = 0.002
"""A standard deviation below this is a share of a few test images, and too small to judge by."""

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
    """Queries that every seed spent."""
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
    def key(self) -> tuple[str, int, str, str, str]:
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

    def threshold(self, new: int, comparisons: int, metric: Metric = "clone_accuracy") -> float:
        """How far the mean of ``new`` seeds may be from the baseline's before it counts as changed.

        Args:
            new: number of new seeds, at least 1.
            comparisons: how many means are compared at once; they share the false-alarm rate.
            metric: whose.
        """
        from scipy.special import stdtrit

        values = self.values(metric)
        old = len(values)
        mean = math.fsum(values) / old
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (old - 1))
        quantile = float(stdtrit(old - 1, 1 - FALSE_ALARMS / (2 * comparisons)))
        return quantile * max(spread, LEAST_SPREAD) * math.sqrt(1 / new + 1 / old)

    def verdict(self, measured: float, new: int, comparisons: int, metric: Metric = "clone_accuracy") -> Verdict:
        """What a new mean over ``new`` seeds says."""
        difference = measured - estimate(self.values(metric)).mean
        if abs(difference) <= self.threshold(new, comparisons, metric):
            return "held"
        change = difference * STRENGTH[metric]
        return "changed" if change == 0 else "stronger" if change > 0 else "weaker"


class Baseline(_Part):
    """All cells of one suite."""

    suite: str
    protocol: str
    cells: tuple[BaselineCell, ...]

    def cell(self, target: str, budget: int, defense: str, attack: str, recovery: str) -> BaselineCell | None:
        """The cell of that name, or None."""
        key = target, budget, defense, attack, recovery
        return next((cell for cell in self.cells if cell.key == key), None)


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
    except ValidationError as error:
        raise UsageError(f"the baseline {path} is not usable: {error}") from None


def dumps(baseline: Baseline) -> str:
    """The canonical text of a baseline."""
    return baseline.model_dump_json(indent=2, exclude_defaults=True) + "\n"


# ------------------------------------------------------------------------------------------------ comparing


Named = Sequence[tuple[tuple[str, int, str, str, str], Record]]
"""Records, each with the key of its cell: target, budget, defense, attack and recovery as the suite writes them."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One mean beside the baseline's."""

    cell: tuple[str, int, str, str, str]
    metric: str
    measured: float | None
    """Mean over the new seeds; None if there is no finished run."""
    reference: float
    threshold: float
    n: int
    """New seeds."""
    verdict: Verdict | Literal["missing"]

    @property
    def holds(self) -> bool:
        """Whether nothing has changed that seeds do not explain."""
        return self.verdict == "held"


def as_baseline(suite: str, protocol: str, records: Named) -> Baseline:
    """A baseline of finished records. Raises `UsageError` for a cell with fewer than two seeds."""
    cells = []
    for key, group in _grouped(records).items():
        if len(group) < 2:
            raise UsageError(f"{_in_words(key)}: a baseline needs two seeds at least, and twenty to be worth much")
        group.sort(key=lambda record: record.spec.seed)
        values = {metric: _values(group, metric) for metric in STRENGTH}
        cells.append(
            BaselineCell(
                **dict(zip(("target", "budget", "defense", "attack", "recovery"), key, strict=True)),  # type: ignore[arg-type]
                **values,  # type: ignore[arg-type]
                seeds=tuple(record.spec.seed for record in group),
                spent=min(record.budget.spent for record in group),
                digests=tuple(sorted(_weights(group))),
            )
        )
    return Baseline(suite=suite, protocol=protocol, cells=tuple(cells))


def compare(baseline: Baseline, records: Named, keys: Iterable[tuple[str, int, str, str, str]]) -> list[Comparison]:
    """Every mean of the cells named, beside the baseline's.

    Queries are compared exactly: an attack that leaves some of its budget is another attack. Raises `UsageError` for
    a cell that the baseline does not know, and for one that attacked other weights than the baseline's one copy: how
    much is stolen depends on the copy as well, and the thresholds come from seeds alone.
    """
    groups, cells = _grouped(records), []
    for key in keys:
        cell = baseline.cell(*key)
        if cell is None:
            raise UsageError(f"the baseline of {baseline.suite} has no {_in_words(key)}: make a new one with --update")
        if len(cell.digests) == 1 and (others := _weights(groups.get(key, [])) - set(cell.digests)):
            raise UsageError(
                f"{_in_words(key)} attacked other weights ({min(others)[:12]}…) than the baseline of {baseline.suite} "
                f"({cell.digests[0][:12]}…), and is not to be compared with it: make a new one with --update"
            )
        cells.append(cell)
    count = sum(bool(cell.values(metric)) for cell in cells for metric in STRENGTH)
    return [line for cell in cells for line in _compare_cell(cell, groups.get(cell.key, []), count)]


def _compare_cell(cell: BaselineCell, group: list[Record], count: int) -> Iterator[Comparison]:
    n = len(group)
    for metric in STRENGTH:
        if not cell.values(metric):
            continue
        values = _values(group, metric)
        measured = math.fsum(values) / n if n and len(values) == n else None
        yield Comparison(
            cell=cell.key,
            metric=metric,
            measured=measured,
            reference=estimate(cell.values(metric)).mean,
            threshold=cell.threshold(max(n, 1), count, metric),
            n=n,
            verdict="missing" if measured is None else cell.verdict(measured, n, count, metric),
        )
    if cell.spent is not None and group:
        least = min(record.budget.spent for record in group)
        yield Comparison(
            cell=cell.key,
            metric="queries",
            measured=least,
            reference=cell.spent,
            threshold=0,
            n=n,
            verdict="held" if least == cell.spent else "changed",
        )


def _grouped(records: Named) -> dict[tuple[str, int, str, str, str], list[Record]]:
    groups: dict[tuple[str, int, str, str, str], list[Record]] = defaultdict(list)
    for key, record in records:
        if record.status == "done":
            groups[key].append(record)
    return groups


def _weights(group: Iterable[Record]) -> set[str]:
    return {record.target.digest for record in group if record.target}


def _values(group: Sequence[Record], metric: Metric) -> tuple[float, ...]:
    """One a record; none at all if one of them lacks it."""
    found = [_value(record, metric) for record in group]
    return tuple(value for value in found if value is not None) if None not in found else ()


def _value(record: Record, metric: Metric) -> float | None:
    part = record.stolen if metric in ("clone_accuracy", "area_under_curve", "kl") else record.diagnostics
    return getattr(part, metric, None)


def _in_words(key: tuple[str, int, str, str, str]) -> str:
    target, budget, defense, attack, recovery = key
    recovered = "" if recovery == "none" else f" + {recovery}"
    return f"{attack}{recovered} against {defense} on {target} at {budget:,} queries"
