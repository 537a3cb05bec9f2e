"""From records to scores: what each attack stole behind each defense, and the worst of it.

A *cell* is everything that was measured under one condition: the same protocol, target, budget, defense,
attack, recovery, clone, pool and precision, hyperparameters and versions included. Only seeds differ inside a
cell, and only over seeds is a mean ever taken: never over attacks, never over hyperparameters. A defense is
judged by its worst cell, so adding an attack can only lower its standing, and a cell that nobody ran is
missing, not good.

The floor of the stolen share is chance. For an attack with a pool of its own images that is too low (its
clone knows something before the first query); then the share is too high, and the cell says so. What is stolen is the
clone that the attacker is left with (`curve.kept_accuracy`), whose accuracy stands beside the share.
"""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from ..components import format_spec, links_of
from .curve import kept_accuracy
from .record import ComponentInfo, Record, SpecInfo

METRICS = ("agreement", "clone_accuracy", "defended_accuracy", "l1", "stolen_share")
"""What is averaged over seeds. All but ``l1`` (0 to 2) are shares."""

UPPER_BOUND = "peeks at clean answers: an upper bound, never ranked"
OWN_DATA = "queries with the target's own training data: a reference, never ranked"
CHANCE_FLOOR = "attacker owns images: with chance as the floor, the stolen share is too high"

RANK = (
    "one more than the number of defenses whose whole interval lies below, and never better than that of a defense "
    "with a smaller mean"
)
"""What `ranks` makes, in every report's words."""

ROUNDING = 1e-9
"""By how much numbers may differ for reasons of floating point alone."""

_T_QUANTILES = (
    *(12.706204736174694, 4.302652729749462, 3.1824463052837078, 2.7764451051977934, 2.5705818356363146),
    *(2.4469118511449786, 2.364624251592784, 2.306004135204166, 2.262157162798205, 2.228138851986274),
    *(2.200985160091639, 2.1788128296672284, 2.1603686564627913, 2.144786687917804, 2.131449545559776),
    *(2.1199052992212546, 2.1098155778333156, 2.1009220402410382, 2.0930240544083087, 2.085963447265864),
)
"""97.5 % quantiles of Student's t at 1, 2, … degrees of freedom, as scipy has them: to import it takes longer than to
score a thousand records."""

K = TypeVar("K", bound=Hashable)


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    half: float | None
    """Half of the 95 % confidence interval (Student's t); None for a single run."""
    n: int


class Measurement(NamedTuple):
    """What one run contributes to its cell."""

    agreement: float
    clone_accuracy: float
    defended_accuracy: float
    l1: float
    """Mean L1 distance of released from clean answers on the test set."""
    stolen_share: float
    """NaN where the target is no better than the floor."""
    target_accuracy: float
    digest: str
    flags: tuple[str, ...]
    digits: tuple[float, ...]
    """What agrees to the last digit only for one clone behind one defense, its attack and seed given."""


class Part(NamedTuple):
    """A component, hashable: its parameters are canonical JSON text."""

    name: str
    version: str
    params: str


class Column(NamedTuple):
    """How the target is attacked."""

    attack: Part
    recovery: Part
    setting: Part
    """Clone, pool and precision, as parameters of a nameless component."""


class Condition(NamedTuple):
    """What the runs of one cell have in common."""

    protocol: str
    target: Part
    budget: int
    defense: Part
    column: Column


class Run(NamedTuple):
    """What scores need of a finished run's record."""

    run_id: str
    created_utc: str
    condition: Condition
    target: Part
    """The copy that was attacked, which the condition does not tell."""
    seed: int
    """The attack's."""
    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One condition's scores over seeds. Labels tell it from the others that were made with it."""

    protocol: str
    target: str
    budget: int
    defense: str
    """With all hyperparameters."""
    attack: str
    """Attack, recovery, and whatever else distinguishes this column from others of the same names."""
    agreement: Estimate
    clone_accuracy: Estimate
    defended_accuracy: Estimate
    l1: Estimate
    stolen_share: Estimate | None
    """None where it is undefined: the target is no better than the floor."""
    target_accuracy: float
    """Mean over the runs; differs between them only if their targets were trained on different machines."""
    targets: tuple[str, ...]
    """Digests of the attacked weights."""
    ranked: bool
    """Whether it counts for the worst case; upper bounds do not."""
    note: str
    flags: tuple[str, ...]
    """Everything that the runs' records warn about."""

    @property
    def n(self) -> int:
        """Runs in the cell."""
        return self.agreement.n

    @property
    def table(self) -> tuple[str, str, int]:
        """Which table it belongs to."""
        return self.protocol, self.target, self.budget


def stolen_share(clone_accuracy: float, target_accuracy: float, floor: float) -> float:
    """How much of what the target knows beyond the floor the clone knows: 0 is nothing, 1 is all of it.

    NaN where the target is no better than the floor: there is nothing to steal.
    """
    if target_accuracy <= floor:
        return math.nan
    return max(0.0, (clone_accuracy - floor) / (target_accuracy - floor))


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and half 95 % interval; does not depend on the order of the values."""
    sample = list(values)
    n = len(sample)
    mean = math.fsum(sample) / n
    if n == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in sample) / (n - 1)
    return Estimate(mean, _t_quantile(n - 1) * math.sqrt(variance / n), n)


def ranks(worst: Sequence[Estimate]) -> list[int]:
    """Ranks of defenses from their worst cases.

    A defense's rank is one more than the number of defenses that are told apart from it and better: whose whole 95 %
    interval lies below its own. It is never better than the rank of a defense with a smaller mean, so a wide interval
    is no merit. Two that are told apart never share a rank; a single run has no interval, and is told apart from
    nothing. One more defense never reverses the order of two, nor ties two that are told apart, nor improves a rank.

    Args:
        worst: in the order of `by_mean`.
    """
    return list(accumulate((1 + sum(told_apart(other, one) for other in worst) for one in worst), max))


def by_mean(share: Estimate) -> tuple[float, float]:
    """Sorts shares from the best to the worst: of equal means the widest comes first, so that none holds it back."""
    return share.mean, -(share.half or 0.0)


def told_apart(better: Estimate, worse: Estimate) -> bool:
    """Whether the one's whole interval lies below the other's."""
    if better.half is None or worse.half is None:
        return False
    return better.mean + better.half + ROUNDING < worse.mean - worse.half


def cells(records: Iterable[Record]) -> list[Cell]:
    """Group the records that are done into cells, in a fixed order.

    Records of one run count once, and so do runs under several of the defense's seeds that came to the same in all that
    was stolen and paid: a defense that draws nothing has but one answer, which is no sample.
    """
    return cells_of(map(run_of, records))


def cells_of(runs: Iterable[Run | None]) -> list[Cell]:
    """`cells`, of records that were read elsewhere: of what `run_of` makes of each."""
    groups: dict[Condition, list[Measurement]] = defaultdict(list)
    for condition, measurement in _measured(filter(None, runs)):
        groups[condition].append(measurement)
    targets = _labels({key.target for key in groups})
    defenses = _labels({key.defense for key in groups}, in_full=True)
    columns = _column_labels({key.column for key in groups})
    return [
        _cell(key, targets[key.target], defenses[key.defense], columns[key.column], groups[key])
        for key in sorted(groups)
    ]


def worst_cases(cells: Iterable[Cell]) -> dict[tuple[str, str, int, str], Cell]:
    """For each table and defense, the ranked cell with the largest mean stolen share.

    A defense without any such cell is absent.
    """
    worst: dict[tuple[str, str, int, str], Cell] = {}
    for cell in cells:
        if cell.ranked and cell.stolen_share is not None:
            place = (*cell.table, cell.defense)
            worst[place] = min(worst.get(place, cell), cell, key=by_severity)
    return worst


def spec_text(component: ComponentInfo) -> str:
    """A component with all its parameters, as it would be written: ``topk:k=5+rounding:decimals=2``."""
    return _in_full(_part(component))


# ------------------------------------------------------------------------------------------------- measuring


def run_of(record: Record) -> Run | None:
    """What scores need of a record; None where the run is not done."""
    measurement = _measure(record)
    if measurement is None:
        return None
    spec = record.spec
    condition = _condition(spec.without_seeds().model_dump_json())
    return Run(record.run_id, record.timing.created_utc, condition, _part(spec.target), spec.seed, measurement)


def _measured(runs: Iterable[Run]) -> Iterator[tuple[Condition, Measurement]]:
    """What was measured and under which condition, once for each run: its newest record counts.

    What came out alike under several of the defense's seeds counts once, too.
    """
    newest: dict[str, Run] = {}
    for run in runs:
        newest[run.run_id] = max(newest.get(run.run_id, run), run)
    distinct: dict[Hashable, Run] = {}
    flags: dict[Hashable, set[str]] = defaultdict(set)
    for run in newest.values():
        alike = run.condition, run.target, run.seed, run.measurement.digits
        distinct[alike] = run
        flags[alike].update(run.measurement.flags)
    return (
        (run.condition, run.measurement._replace(flags=tuple(sorted(flags[alike])))) for alike, run in distinct.items()
    )


def _measure(record: Record) -> Measurement | None:
    target, stolen, paid, kept = record.target, record.stolen, record.paid, kept_accuracy(record)
    if record.status != "done" or target is None or stolen is None or paid is None or kept is None:
        return None
    return Measurement(
        agreement=stolen.agreement,
        clone_accuracy=kept,
        defended_accuracy=paid.defended_accuracy,
        l1=paid.l1.mean,
        stolen_share=stolen_share(kept, target.accuracy, 1 / target.num_classes),
        target_accuracy=target.accuracy,
        digest=target.digest,
        flags=tuple(record.flags),
        digits=(stolen.kl, stolen.l1, stolen.agreement, paid.nll, paid.l1.mean),
    )


def _cell(key: Condition, target: str, defense: str, attack: str, runs: list[Measurement]) -> Cell:
    means = {metric: estimate(getattr(run, metric) for run in runs) for metric in METRICS}
    note = _note(key)
    return Cell(
        protocol=key.protocol,
        target=target,
        budget=key.budget,
        defense=defense,
        attack=attack,
        agreement=means["agreement"],
        clone_accuracy=means["clone_accuracy"],
        defended_accuracy=means["defended_accuracy"],
        l1=means["l1"],
        stolen_share=None if math.isnan(means["stolen_share"].mean) else means["stolen_share"],
        target_accuracy=estimate(run.target_accuracy for run in runs).mean,
        targets=tuple(sorted({run.digest for run in runs})),
        ranked=note not in (UPPER_BOUND, OWN_DATA),
        note=note,
        flags=tuple(sorted({flag for run in runs for flag in run.flags})),
    )


def _note(key: Condition) -> str:
    if key.column.recovery.name.startswith("oracle_"):
        return UPPER_BOUND
    pool = json.loads(key.column.setting.params)["pool"]
    if pool is not None and key.target.name.startswith(f"{pool}/"):
        return OWN_DATA
    return CHANCE_FLOOR if pool else ""


def by_severity(cell: Cell) -> tuple[float, str]:
    """Sorts the worst cell first; of equal ones, the first name."""
    return -(cell.stolen_share.mean if cell.stolen_share else 0.0), cell.attack


@cache
def _t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    if freedom <= len(_T_QUANTILES):
        return _T_QUANTILES[freedom - 1]
    from scipy.special import stdtrit  # waited for only by those who have more seeds than the table

    return float(stdtrit(freedom, 0.975))


# -------------------------------------------------------------------------------------------------- labeling


@cache
def _condition(text: str) -> Condition:
    """The condition of a spec without seeds. It comes as text, so that a cell's runs have it worked out once."""
    spec = SpecInfo.model_validate_json(text)
    setting = {"clone": spec.clone, "pool": spec.pool, "precision": spec.precision}
    column = Column(_part(spec.attack), _part(spec.recovery), Part("", "", _canonical(setting)))
    return Condition(spec.protocol, _part(spec.target), spec.budget, _part(spec.defense), column)


def _part(component: ComponentInfo) -> Part:
    return Part(component.name, component.version, _canonical(component.params))


_canonical = json.JSONEncoder(sort_keys=True).encode


def _labels(parts: Iterable[Part], *, in_full: bool = False) -> dict[Part, str]:
    """A label for each part: its name, and the parameters in which it differs from others of that name."""
    namesakes = _grouped((part.name, part) for part in parts)
    labels = {}
    for group in namesakes.values():
        keys = _differing(group)
        for part in group:
            label = _in_full(part) if in_full else _brief(part, keys)
            labels[part] = label + (f" (version {part.version})" if in_full and "version" in keys else "")
    return _distinct(labels)


def _column_labels(columns: Collection[Column]) -> dict[Column, str]:
    attacks = _labels({column.attack for column in columns})
    recoveries = _labels({column.recovery for column in columns})
    labels = {}
    for group in _grouped((column.attack.name, column) for column in columns).values():
        keys = _differing(column.setting for column in group)
        for column in group:
            recovery, setting = recoveries[column.recovery], _brief(column.setting, keys)
            recovered = "" if recovery == "none" else f"+{recovery}"
            labels[column] = attacks[column.attack] + recovered + (f" ({setting[1:]})" if setting else "")
    return _distinct(labels)


def _grouped(pairs: Iterable[tuple[str, K]]) -> dict[str, list[K]]:
    groups: dict[str, list[K]] = defaultdict(list)
    for name, member in sorted(pairs):
        groups[name].append(member)
    return groups


def _facets(part: Part) -> dict[str, Any]:
    params: dict[str, Any] = json.loads(part.params)
    return {"version": part.version} | params


def _differing(parts: Iterable[Part]) -> set[str]:
    """The parameters (``version`` counts as one) that are not the same, or not there, in all parts."""
    each = [{key: _canonical(value) for key, value in _facets(part).items()} for part in set(parts)]
    return {key for facets in each for key in facets if any(other.get(key) != facets[key] for other in each)}


def _brief(part: Part, keys: set[str]) -> str:
    return format_spec(part.name, {key: value for key, value in _facets(part).items() if key in keys})


def _in_full(part: Part) -> str:
    """Name and parameters; a chain's go back to their links."""
    return "+".join(format_spec(name, params) for name, params in links_of(part.name, json.loads(part.params)))


def _distinct(labels: dict[K, str]) -> dict[K, str]:
    """Number equal labels, which only odd names can cause: different conditions must never share one."""
    seen: dict[str, int] = defaultdict(int)
    distinct = {}
    for key, label in labels.items():
        seen[label] += 1
        distinct[key] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    return distinct
