"""What a record may warn its readers of, in sentences that do not depend on the numbers.

A run finds them (`benchmark.reliability`); they stand here because whoever reads a record must know them without it: a
flag in any other words is somebody's own. Some follow from numbers that the record holds as well, so that nobody can
leave them out.
"""

from collections.abc import Iterable

from .record import CurvePoint, Paid
from .scoring import ROUNDING

REPEATED = "answers the same batch otherwise when asked again, which it does not declare"
BATCHED = "answers the same image otherwise alone than in a batch"
ORDERED = "answers depend on the order of the batch, which it does not declare"
PERSONAL = "answers depend on who asks, which it does not declare"
SINGLED_OUT = "answered the attack otherwise than it answers a newcomer who asks the same"
DRIFTED = "answers to the same images changed during the attack, which it does not declare"
RECOGNIZED = "images that costs are measured on are answered better than copies of them made for this run"
FRAGILE = "costs far more accuracy on a shifted copy of the test set than on the test set"
MOVED = "defended accuracy moved during the attack"
DEARER = "honest users paid more during the attack than after it, when costs are measured"
DISTORTED = "declares to preserve the top class, but changed it for test images"
TIRED = "an honest account that goes on asking is answered otherwise than a newcomer"
LATE = "acts on an account only after more queries than an honest one was tried with, or does not say when"

ALL = frozenset(
    {
        REPEATED,
        BATCHED,
        ORDERED,
        PERSONAL,
        SINGLED_OUT,
        DRIFTED,
        RECOGNIZED,
        FRAGILE,
        MOVED,
        DEARER,
        DISTORTED,
        TIRED,
        LATE,
    }
)
"""Every flag that there is."""

FLAGGED_SINCE = 4
"""The version of the record's schema from which on flags are these sentences."""
DRIFT = 0.01
"""Change of the defended accuracy that is too much, beyond chance."""
SHIFT_COST = 0.2
"""Accuracy lost on the shifted copy beyond that lost on the test set that is too much."""
STANDARD_ERRORS = 6.0
"""What counts as chance."""


def fragile(paid: Paid, accuracy: float) -> bool:
    """Whether `FRAGILE` holds; ``accuracy`` is the undefended target's."""
    if paid.shifted is None:
        return False
    known, unknown = accuracy - paid.defended_accuracy, paid.shifted.undefended - paid.shifted.defended
    return unknown - known > SHIFT_COST + ROUNDING


def moved(paid: Paid, curve: Iterable[CurvePoint], images: int | None) -> bool:
    """Whether `MOVED` holds at a milestone or at the end.

    Args:
        images: the test set's size where answers are drawn, None where they are not.
    """
    before = paid.defended_accuracy_before

    def apart(after: float) -> bool:
        spread = (before * (1 - before) + after * (1 - after)) / images if images else 0.0
        chance: float = STANDARD_ERRORS * spread**0.5
        return abs(after - before) > DRIFT + chance + ROUNDING

    return any(map(apart, [*(point.defended_accuracy for point in curve), paid.defended_accuracy]))


def lacks(flag: str) -> str:
    """What is wrong with a record without a flag that follows from its numbers."""
    return f"flags: lacks {flag!r}, which its numbers call for"
