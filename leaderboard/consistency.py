"""What a record says otherwise than others of the same weights, or than its defense's declaration allows.

The undefended target is the same wherever its weights are. So is what honest users pay for a defense that neither draws
nor remembers nor learns, whichever attack came before it: to the last digits where sums are rounded alike, and anywhere
else but for an image of hundreds about which a defense decides otherwise. Which of two records is the edited one cannot
be told: the one that stands apart from most is named, with one that does not.

What a defense declares is its entry's word, as everything else of it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from statistics import median_low
from typing import Any, cast

from .contradictions import FLOORED, MOST_TEST_IMAGES, MOST_TRANSFER_IMAGES
from .flags import DISTORTED, FLAGGED_SINCE, MOVED, lacks, moved
from .record import ComponentInfo, Paid, Record, TargetInfo
from .suites import DefenseEntry, DefenseSetting
from .verification import PAID, ROUNDING

Declared = Mapping[str, tuple[DefenseEntry, DefenseSetting]]
"""Entries with the one of their settings that is meant, by `key_of`."""

_NEAR = 1e-6
"""Rounding of sums, on one machine."""
_CLEAN = {"target.accuracy": 0.0, "paid.shifted.images": 0.0, "paid.shifted.undefended": ROUNDING}
"""What the undefended target is, with how far records may be apart."""
_ANYWHERE = {name: ROUNDING * length for name, length in PAID.items()} | {"paid.nll": ROUNDING * FLOORED}
"""What honest users pay, wherever the run was."""
_ALIKE = dict.fromkeys((*_ANYWHERE, "paid.l1.p95", "paid.l1.max", "paid.ece", "paid.auroc"), _NEAR)
"""The same where sums are rounded alike, and what a single image or the edge of a bin may change elsewhere."""
LEARNS_FROM = {"data", "auxiliary"}
"""What a defense needs that trains something, which comes out otherwise where sums are rounded otherwise."""


def key_of(defense: ComponentInfo) -> str:
    """A setting of a defense as a record and an entry both hold it, whatever the order of its parameters."""
    return json.dumps(defense.model_dump(mode="json"), sort_keys=True)


def of_targets(records: Mapping[Path, Record]) -> Iterator[tuple[Path, str]]:
    """Records that know the undefended target otherwise than others which attacked the same weights."""
    groups: dict[str, dict[Path, Record]] = defaultdict(dict)
    for path, record in records.items():
        if record.target is not None:
            groups[record.target.digest][path] = record
    for group in groups.values():
        for path, said in _apart(group, _CLEAN).items():
            yield path, f"target: the same weights were measured otherwise: {said}"


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
            alike[*what, record.env.model_dump_json(exclude={"commit", "dirty"})][path] = record
    found: dict[Path, str] = {}
    for groups, allowed in ((anywhere, _ANYWHERE), (alike, _ALIKE)):
        for group in groups.values():
            found = _apart(group, allowed) | found
    for path, said in found.items():
        yield path, f"paid: the same defense of the same weights costs otherwise: {said}"


def of_declaration(record: Record, declared: tuple[DefenseEntry, DefenseSetting]) -> Iterator[str]:
    """What a record leaves unflagged, or has released, against what its defense declares."""
    entry, setting = declared
    paid = record.paid
    if record.target is None or paid is None or record.schema_version < FLAGGED_SINCE:
        return
    due = {
        DISTORTED: entry.argmax_preserving and paid.argmax_changed > 0,
        MOVED: moved(paid, record.curve, _fewest_images(record, record.target, paid) if entry.stochastic else None),
    }
    yield from (lacks(flag) for flag, holds in due.items() if holds and flag not in record.flags)
    wrong = FLOORED * (1 - paid.defended_accuracy)
    if setting.labels_only and not paid.refused and abs(paid.nll - wrong) > 1e-3:
        yield f"paid: nll is {paid.nll:.6g}, but labels of this accuracy have {wrong:.6g}"


def _is_constant(declared: tuple[DefenseEntry, DefenseSetting] | None) -> bool:
    """Whether a defense neither draws nor remembers, as its family says, nor learns, by what it needs."""
    if declared is None:
        return False
    entry, _ = declared
    kept = entry.family in ("control", "deterministic") and not entry.stochastic
    return kept and LEARNS_FROM.isdisjoint(entry.needs)


def _apart(group: Mapping[Path, Record], allowed: Mapping[str, float]) -> dict[Path, str]:
    """The records of a group that are further than allowed from its median, each with its numbers and another's."""
    found: dict[Path, str] = {}
    for name, near in allowed.items():
        values = {path: value for path, each in group.items() if (value := _number(each, name)) is not None}
        middle = median_low(values.values()) if values else 0.0
        for path, value in values.items():
            if abs(value - middle) > near:
                typical = next(other for other, theirs in values.items() if theirs == middle)
                said = f"{name} is {value:.6g}, {middle:.6g} in {typical}"
                found[path] = f"{found[path]}; {said}" if path in found else said
    return found


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
