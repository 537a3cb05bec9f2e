"""What a record says otherwise than others of the same weights, or than its defense's declaration allows.

The undefended target is the same wherever its weights are. So is what honest users pay for a defense that neither draws
nor remembers nor learns, whichever attack came before it: to the last digits where sums are rounded alike, and anywhere
else but for an image of hundreds about which a defense decides otherwise. An attack spends the same whatever it is
answered, and a clone is one attack's, under one seed. Which of two records is the edited one cannot be told: the one
that stands apart from most is named, with one that does not.

What a defense declares is its entry's word, as everything else of it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from statistics import median_low
from typing import Any, cast

from .contradictions import FLOORED, MOST_TEST_IMAGES, MOST_TRANSFER_IMAGES
from .flags import DISTORTED, FLAGGED_SINCE, MOVED, lacks, moved
from .record import ComponentInfo, Paid, Record, Stolen, TargetInfo
from .suites import DefenseEntry, DefenseSetting
from .verification import PAID, ROUNDING, may_have_collapsed

Declared = Mapping[str, tuple[DefenseEntry, DefenseSetting]]
"""Entries with the one of their settings that is meant, by `key_of`."""

_NEAR = 1e-6
"""Rounding of sums, on one machine."""
_CLEAN = {
    "target.accuracy": ROUNDING,
    "stolen.transfer.images": ROUNDING * MOST_TRANSFER_IMAGES,
    "paid.shifted.images": 0.0,
    "paid.shifted.undefended": ROUNDING,
}
"""What the undefended target is, with how far records may be apart."""
_CLEAN_ALIKE = dict.fromkeys(_CLEAN, 0.0)
"""The same where sums are rounded alike."""
_ANYWHERE = {name: ROUNDING * length for name, length in PAID.items()} | {"paid.nll": ROUNDING * FLOORED}
"""What honest users pay, wherever the run was."""
_ALIKE = dict.fromkeys((*_ANYWHERE, "paid.l1.p95", "paid.l1.max", "paid.ece", "paid.auroc"), _NEAR)
"""The same where sums are rounded alike, and what a single image or the edge of a bin may change elsewhere."""
_JUDGED_SINCE = 3
"""The version of the record's schema from which on it holds what a detector made of the attack's queries."""
LEARNS_FROM = {"data", "auxiliary"}
"""What a defense needs that trains something, which comes out otherwise where sums are rounded otherwise."""


def key_of(defense: ComponentInfo) -> str:
    """A setting of a defense as a record and an entry both hold it, whatever the order of its parameters."""
    return json.dumps(defense.model_dump(mode="json"), sort_keys=True)


def of_targets(records: Mapping[Path, Record]) -> Iterator[tuple[Path, str]]:
    """Records that know the undefended target otherwise than others which attacked the same weights."""
    anywhere: dict[object, dict[Path, Record]] = defaultdict(dict)
    alike: dict[object, dict[Path, Record]] = defaultdict(dict)
    for path, record in records.items():
        if record.target is not None:
            anywhere[record.target.digest][path] = record
            if record.env.arithmetic is not None:
                alike[record.target.digest, _machine(record)][path] = record
    for path, said in _strays((anywhere, _CLEAN), (alike, _CLEAN_ALIKE)).items():
        yield path, f"target: the same weights were measured otherwise: {said}"


def of_clones(records: Mapping[Path, Record], attacks: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Records of a clone that, by another record, is another seed's or another attack's.

    Distances of two clones agree to the last digit only if the clones are one. Settings, recoveries and defenses need
    make no difference to an attack. Nor need the attack where the answers are labels: ``dfms_sl`` is ``dfms_hl`` then.

    Args:
        attacks: those of which no two are one where the answers are labels, by `key_of`.
    """
    first: dict[object, tuple[Path, Record]] = {}
    for path, record in records.items():
        if record.stolen is None or record.target is None or _proves_nothing(record.stolen, record.target):
            continue
        clone = record.stolen.kl, record.stolen.l1, record.stolen.transfer.model_dump_json()
        where, other = first.setdefault(clone, (path, record))
        if record.spec.seed != other.spec.seed:
            yield path, f"stolen: the clone of another seed, in {where}, cannot be the same to the last digit"
        elif record.spec.attack.name != other.spec.attack.name and not _may_coincide(record, other, attacks):
            yield path, f"stolen: the clone of another attack, in {where}, cannot be the same to the last digit"


def of_budgets(records: Mapping[Path, Record], attacks: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Records of attacks that spent, or were measured, otherwise than the same attack elsewhere, whatever the defense.

    A milestone that is left out may be the one that the score stands on.

    Args:
        attacks: those that ask as often whatever they are answered, by `key_of`.
    """
    groups: dict[object, dict[Path, Record]] = defaultdict(dict)
    for path, record in records.items():
        spec = record.spec
        attack, recovery = key_of(spec.attack), key_of(spec.recovery)
        if record.status == "done" and attack in attacks:
            groups[spec.target.name, attack, recovery, spec.clone, spec.pool, spec.budget][path] = record
    for path, said in _strays((groups, {"budget.spent": 0.0})).items():
        yield path, f"budget: the same attack spent otherwise: {said}"
    for group in groups.values():
        usual = median_low([_before_the_end(record) for record in group.values()])
        for path, record in group.items():
            asked = _before_the_end(record)
            if asked != usual:
                yield path, f"curve: the same attack was measured otherwise: at {asked} queries, at {usual} elsewhere"


def of_defenses(records: Mapping[Path, Record], declared: Declared) -> Iterator[tuple[Path, str]]:
    """Records that have honest users pay otherwise than others of a defense that must cost the same."""
    anywhere: dict[tuple[object, ...], dict[Path, Record]] = defaultdict(dict)
    alike: dict[tuple[object, ...], dict[Path, Record]] = defaultdict(dict)
    for path, record in records.items():
        defense, spec = key_of(record.spec.defense), record.spec
        if record.target is None or record.paid is None or not _is_constant(declared.get(defense)):
            continue
        what = record.target.digest, defense, spec.defense_seed, spec.precision
        anywhere[what][path] = record
        if record.env.arithmetic is not None:
            alike[*what, _machine(record)][path] = record
    for path, said in _strays((anywhere, _ANYWHERE), (alike, _ALIKE)).items():
        yield path, f"paid: the same defense of the same weights costs otherwise: {said}"


def of_declaration(record: Record, declared: tuple[DefenseEntry, DefenseSetting]) -> Iterator[str]:
    """What a record leaves unflagged, or has released, against what its defense declares."""
    entry, setting = declared
    paid = record.paid
    yield from _of_verdicts(record, entry)
    if record.target is None or paid is None or record.schema_version < FLAGGED_SINCE:
        return
    due = {
        DISTORTED: entry.argmax_preserving and paid.argmax_changed > 0,
        MOVED: moved(paid, record.curve, _fewest_images(record, record.target, paid) if entry.stochastic else None),
    }
    yield from (lacks(flag) for flag, holds in due.items() if holds and flag not in record.flags)
    if setting.labels_only and not paid.refused and not _are_labels(paid):
        yield f"paid: nll is {paid.nll:.6g}, but labels of this accuracy have {_nll_of_labels(paid):.6g}"


def _of_verdicts(record: Record, entry: DefenseEntry) -> Iterator[str]:
    """Only detectors judge queries; of a chain that trains a network of its own, one may be a link."""
    if record.diagnostics is None or record.schema_version < _JUDGED_SINCE:
        return
    judged = record.diagnostics.detection is not None
    if judged and entry.family not in ("detection", "training"):
        yield f"diagnostics: detection is there, but {entry.name} is of the family {entry.family}, which judges nothing"
    if not judged and entry.family == "detection":
        yield f"diagnostics: detection is missing, but {entry.name} is of the family detection, which judges queries"


def _before_the_end(record: Record) -> list[int]:
    """The milestones of a curve, less the last one, which is where the budget ended."""
    return [point.queries for point in record.curve[:-1]]


def _is_constant(declared: tuple[DefenseEntry, DefenseSetting] | None) -> bool:
    """Whether a defense neither draws nor remembers, as its family says, nor learns, by what it needs."""
    if declared is None:
        return False
    entry, _ = declared
    kept = entry.family in ("control", "deterministic") and not entry.stochastic
    return kept and LEARNS_FROM.isdisjoint(entry.needs)


def _proves_nothing(stolen: Stolen, target: TargetInfo) -> bool:
    """Whether others may have a clone's distances: it answers every image alike, or as the target does."""
    return stolen.kl == 0 or may_have_collapsed(stolen, target)


def _may_coincide(one: Record, other: Record, attacks: Collection[str]) -> bool:
    distinct = key_of(one.spec.attack) in attacks and key_of(other.spec.attack) in attacks
    return not distinct and (_gets_labels(one) or _gets_labels(other))


def _gets_labels(record: Record) -> bool:
    """Whether the attack learned from top classes alone, as far as a record tells."""
    return record.spec.recovery.name == "argmax" or (record.paid is not None and _are_labels(record.paid))


def _are_labels(paid: Paid) -> bool:
    return abs(paid.nll - _nll_of_labels(paid)) <= 1e-3


def _nll_of_labels(paid: Paid) -> float:
    return FLOORED * (1 - paid.defended_accuracy)


def _machine(record: Record) -> str:
    """Where a record was made: there, the same run gives the same bits."""
    return record.env.model_dump_json(exclude={"commit", "dirty"})


def _strays(*kinds: tuple[Mapping[Any, Mapping[Path, Record]], Mapping[str, float]]) -> dict[Path, str]:
    """The records that stand apart in any group of any kind, for the first reason."""
    found: dict[Path, str] = {}
    for groups, allowed in kinds:
        for group in groups.values():
            found = _apart(group, allowed) | found
    return found


def _apart(group: Mapping[Path, Record], allowed: Mapping[str, float]) -> dict[Path, str]:
    """The records of a group that are further than allowed from its median, each with its numbers and another's."""
    found: dict[Path, str] = {}
    for name, near in allowed.items():
        values = {path: value for path, each in group.items() if (value := _number(each, name)) is not None}
        middle = median_low(values.values()) if values else 0.0
        for path, value in values.items():
            if abs(value - middle) > near:
                typical = next(other for other, theirs in values.items() if theirs == middle)
                said = f"{name} is {_text(value)}, {_text(middle)} in {typical}"
                found[path] = f"{found[path]}; {said}" if path in found else said
    return found


def _text(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(record: Record, name: str) -> float | None:
    """A value of a record by its path; None where the record, or a section on the way, has none."""
    part: Any = record
    for attribute in name.split("."):
        part = getattr(part, attribute, None)
    return cast("float | None", part)


def _fewest_images(record: Record, target: TargetInfo, paid: Paid) -> int:
    """How large the test set is at least: exactly, where all images that the target gets right were counted."""
    right = record.stolen.transfer.images if record.stolen else 0
    if 0 < right < MOST_TRANSFER_IMAGES and target.accuracy:
        return round(right / target.accuracy)
    shares = target.accuracy, paid.defended_accuracy, paid.defended_accuracy_before
    return math.lcm(*(Fraction(share).limit_denominator(MOST_TEST_IMAGES).denominator for share in shares))
