"""Numbers of one record that cannot all be true.

A run measures the same things from several sides, and the sides must agree: shares are whole numbers of test images,
the curve ends where the clone stands, an area is the curve's, a flag that follows from the numbers is there. Whoever
edits one number by hand has to find all that depend on it. Someone who does, or who makes up a whole record, is not
found here: what proves a record is running it again (``msbench leaderboard verify``).
"""

import math
from collections.abc import Iterator
from fractions import Fraction

from .curve import area_under_curve, queries_to
from .flags import ALL, FLAGGED_SINCE, FRAGILE, fragile, lacks
from .record import BudgetInfo, CurvePoint, Diagnostics, Distance, Paid, Record, Stolen, TargetInfo

FLOORED = -math.log(1e-12)
"""The largest negative log-probability, nats: probabilities are floored there."""
MOST_TRANSFER_IMAGES = 1000
"""Adversarial examples start from all test images that the target gets right, up to this many."""
MOST_TEST_IMAGES = 200_000
"""No known test set is larger; a share that is no fraction of fewer images was not counted."""
SPENT = "budget spent"
"""Why an attack ended that left nothing of its budget."""
_SAME = 1e-9
"""Rounding of sums in double precision."""
_BIN = 2e-3
"""Resolution of the 95th percentile of distances on queries, which is read from a histogram; twice its bins."""


def contradictions(record: Record) -> Iterator[str]:
    """What cannot be true of a record that is valid by its schema, a line each."""
    asked = [point.queries for point in record.curve]
    yield from _of_budget(asked, record.budget)
    if record.diagnostics and record.target:
        yield from _of_queries(record.diagnostics, record.budget.spent, record.target)
    if record.schema_version >= FLAGGED_SINCE:
        yield from (f"flags: {flag!r} is none that a run gives" for flag in record.flags if flag not in ALL)
    if record.target and record.stolen and record.paid and record.status == "done":
        if asked and asked[0] > 0 and _increase(asked):  # what lies below any other curve is no area
            yield from _of_curve(record.curve, record.budget.spent, record.stolen, record.target)
        yield from _of_counts(record, record.target, record.stolen, record.paid)
        yield from _of_clone(record.curve, record.stolen, record.target)
        yield from _of_price(record.paid, record.target)
        yield from _of_verdicts(record.paid, record.diagnostics)
        if fragile(record.paid, record.target.accuracy) and FRAGILE not in record.flags:
            yield lacks(FRAGILE)


# -------------------------------------------------------------------------------------------------- the curve


def _of_budget(asked: list[int], budget: BudgetInfo) -> Iterator[str]:
    """What cannot be true of how much was asked, and when the curve was measured."""
    if not _increase(asked):
        yield "curve: queries do not increase"
    if 0 in asked:
        yield "curve: a point at 0 queries, where no clone is measured"
    if asked and asked[-1] > budget.spent:
        yield f"curve: {asked[-1]} queries, but only {budget.spent} were spent"
    if budget.stop == SPENT and budget.spent != budget.limit:
        yield f"budget: stop is {SPENT!r}, but {budget.spent} of {budget.limit} queries were"


def _increase(asked: list[int]) -> bool:
    return asked == sorted(set(asked))


def _of_curve(curve: list[CurvePoint], spent: int, stolen: Stolen, target: TargetInfo) -> Iterator[str]:
    end = curve[-1]
    if end.queries != spent:
        yield f"curve: ends at {end.queries} of {spent} queries"
    for name in ("clone_accuracy", "agreement"):
        if getattr(end, name) != getattr(stolen, name):
            yield f"curve: its end is not stolen.{name}"
    for name, share in (("queries_to_half", 0.5), ("queries_to_90", 0.9)):
        reached = queries_to(curve, share * target.accuracy)
        if getattr(stolen, name) != reached:
            yield f"stolen: {name} is {getattr(stolen, name)}, the curve's is {reached}"
    area = area_under_curve(curve)
    if abs(stolen.area_under_curve - area) > _SAME:
        yield f"stolen: area_under_curve is {stolen.area_under_curve:.6g}, the curve's is {area:.6g}"


# ------------------------------------------------------------------------------------------------- the counts


def _of_counts(record: Record, target: TargetInfo, stolen: Stolen, paid: Paid) -> Iterator[str]:
    """Shares are whole numbers of images over a number of images."""
    transfer = stolen.transfer
    if transfer.images > MOST_TRANSFER_IMAGES:
        yield f"stolen: transfer.images is {transfer.images}, but no more than {MOST_TRANSFER_IMAGES} are used"
    if target.accuracy and not transfer.images:
        yield "stolen: transfer.images is 0, but the target gets test images right"
    for name in ("fgsm", "bim", "pgd"):
        if transfer.images and not _counts(getattr(transfer, name), transfer.images):
            yield f"stolen: transfer.{name} is no number of the {transfer.images} images it was measured on"
    if paid.shifted is not None:
        for name in ("undefended", "defended", "argmax_changed"):
            if not _counts(getattr(paid.shifted, name), paid.shifted.images):
                yield f"paid: shifted.{name} is no number of the {paid.shifted.images} images it was measured on"
    shares = {
        "target.accuracy": target.accuracy,
        **{f"stolen.{name}": getattr(stolen, name) for name in ("clone_accuracy", "agreement", "agreement_released")},
        **{f"paid.{name}": getattr(paid, name) for name in ("defended_accuracy", "defended_accuracy_before")},
        **{f"paid.{name}": getattr(paid, name) for name in ("argmax_changed", "flagged", "refused")},
    }
    for i, point in enumerate(record.curve):
        shares |= {f"curve.{i}.{key}": value for key, value in point.model_dump(exclude={"queries"}).items()}
    yield from _one_test_set({name: value for name, value in shares.items() if value is not None}, transfer.images)


def _one_test_set(shares: dict[str, float], right: int) -> Iterator[str]:
    """All shares are of one test set, of which the target gets ``right`` images right, or more than are counted."""
    accuracy = shares["target.accuracy"]
    if 0 < right < MOST_TRANSFER_IMAGES:
        images = round(right / accuracy) if accuracy else 0
        if not images or not math.isclose(right / images, accuracy, rel_tol=0, abs_tol=1e-12):
            yield f"stolen: transfer.images {right} is not the number of test images that the target gets right"
            return
        uncounted = [name for name, value in shares.items() if not _counts(value, images)]
        if uncounted:
            yield f"{', '.join(uncounted)}: no number of the {images} test images"
        return
    fractions = {name: Fraction(value).limit_denominator(MOST_TEST_IMAGES) for name, value in shares.items()}
    uncounted = [name for name, value in shares.items() if abs(float(fractions[name]) - value) > 1e-12]
    if uncounted:
        yield f"{', '.join(uncounted)}: no share of a number of test images"
    elif math.lcm(*(fraction.denominator for fraction in fractions.values())) > MOST_TEST_IMAGES:
        yield "the shares are not of one test set: no number of images fits them all"


def _counts(share: float, images: int) -> bool:
    return abs(share * images - round(share * images)) < 1e-6


# ------------------------------------------------------------------------------------------------- the rest


def _of_clone(curve: list[CurvePoint], stolen: Stolen, target: TargetInfo) -> Iterator[str]:
    wrong = 1 - target.accuracy
    for where, measured in (("stolen", stolen), *((f"curve.{i}", point) for i, point in enumerate(curve))):
        apart = abs(measured.clone_accuracy - measured.agreement)  # type: ignore[attr-defined]
        if apart > wrong + _SAME:
            yield (
                f"{where}: clone_accuracy and agreement are {apart:.4g} apart, "
                f"more than the {wrong:.4g} that the target gets wrong"
            )
    if stolen.kl < stolen.l1**2 / 2 - _SAME:
        yield f"stolen: a KL of {stolen.kl:.4g} is too small for an L1 of {stolen.l1:.4g} (Pinsker's inequality)"
    if stolen.kl > FLOORED + _SAME:
        yield f"stolen: a KL of {stolen.kl:.4g} is more than floored probabilities allow"


def _of_price(paid: Paid, target: TargetInfo) -> Iterator[str]:
    lost = abs(paid.defended_accuracy - target.accuracy)
    if lost > paid.argmax_changed + _SAME:
        yield f"paid: the accuracy changed by {lost:.4g}, but only {paid.argmax_changed:.4g} of the top classes did"
    if paid.shifted is not None:
        lost, changed = abs(paid.shifted.undefended - paid.shifted.defended), paid.shifted.argmax_changed
        if lost > changed + _SAME:
            yield f"paid: shifted accuracy changed by {lost:.4g}, but only {changed:.4g} of the top classes did"
    if paid.nll > FLOORED + _SAME:
        yield f"paid: a negative log-likelihood of {paid.nll:.4g} is more than floored probabilities allow"
    if paid.l1.max == 0 and paid.argmax_changed > (paid.refused or 0) + _SAME:
        yield "paid: no answer was changed, but top classes were"
    yield from _of_distance("l1", paid.l1, 1e-6)
    if paid.l1_queries is not None:
        yield from _of_distance("l1_queries", paid.l1_queries, _BIN)


def _of_distance(name: str, distance: Distance, tolerance: float) -> Iterator[str]:
    """At most a twentieth of the distances is above the 95th percentile, and no less than that from it upwards."""
    least, most = 0.05 * distance.p95, distance.p95 + 0.05 * (distance.max - distance.p95)
    in_order = distance.p95 <= distance.max + tolerance and distance.mean <= distance.max + tolerance
    if not in_order or not least - tolerance <= distance.mean <= most + tolerance:
        yield (
            f"paid: {name} cannot have a mean of {distance.mean:.4g} with a 95th percentile of {distance.p95:.4g} "
            f"and a maximum of {distance.max:.4g}"
        )


def _of_verdicts(paid: Paid, diagnostics: Diagnostics | None) -> Iterator[str]:
    """A defense that judges judges everybody's queries, and says both what it flagged and what it refused."""
    caught = diagnostics.detection if diagnostics else None
    if len({part is None for part in (paid.flagged, paid.refused, caught)}) > 1:
        yield "paid: flagged and refused are there where diagnostics has detection, and nowhere else"


def _of_queries(diagnostics: Diagnostics, spent: int, target: TargetInfo) -> Iterator[str]:
    histogram = diagnostics.label_histogram
    if len(histogram) != target.num_classes:
        yield f"diagnostics: label_histogram does not have the target's {target.num_classes} classes"
    if sum(histogram) != spent:
        yield f"diagnostics: label_histogram counts {sum(histogram)} of {spent} queries"
    shares = [count / sum(histogram) for count in histogram if count]
    entropy = -sum(share * math.log(share) for share in shares)
    if abs(diagnostics.label_entropy - max(0.0, entropy)) > 1e-6:
        yield f"diagnostics: label_entropy is {diagnostics.label_entropy:.6g}, the histogram's is {entropy:.6g}"
    caught = diagnostics.detection
    if caught is None:
        return
    if max(caught.flagged, caught.refused) > spent:
        yield f"diagnostics: more than the {spent} queries were flagged or refused"
    if (caught.first_flagged is None) != (caught.flagged == 0):
        yield f"diagnostics: {caught.flagged} queries were flagged, the first of them {caught.first_flagged}"
    elif caught.first_flagged is not None and not 1 <= caught.first_flagged <= spent - caught.flagged + 1:
        yield f"diagnostics: the first of {caught.flagged} flagged queries cannot be {caught.first_flagged} of {spent}"
