"""What is read off a run's curve, without torch: where it is measured, and where it is checked again."""

import math
from collections.abc import Sequence

from .record import CurvePoint, Record


def queries_to(curve: Sequence[CurvePoint], accuracy: float) -> int | None:
    """Queries at the first milestone with at least that clone accuracy."""
    return next((point.queries for point in curve if point.clone_accuracy >= accuracy), None)


def area_under_curve(curve: Sequence[CurvePoint]) -> float:
    """Mean clone accuracy over log-queries, by trapezoids; a single milestone counts as it is."""
    if len(curve) == 1:
        return curve[0].clone_accuracy
    logs = [math.log(point.queries) for point in curve]
    heights = [point.clone_accuracy for point in curve]
    area = sum((logs[i + 1] - logs[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(len(curve) - 1))
    return min(1.0, area / (logs[-1] - logs[0]))  # rounding, where all heights are one


def before_refusal(record: Record) -> CurvePoint | None:
    """The last milestone before the attack's queries were refused; None if none were, or no milestone is.

    Refusals are taken to be the last of all queries, which they are where an account is closed for good; else the first
    may have come sooner. So a detector that refuses one query early hides nothing.
    """
    detection = record.diagnostics.detection if record.diagnostics else None
    if detection is None or not detection.refused:
        return None
    answered = record.budget.spent - detection.refused
    points = [point for point in record.curve if point.queries <= answered]
    return max(points, key=lambda point: point.queries, default=None)


def kept_accuracy(record: Record) -> float | None:
    """Accuracy of the clone that the attacker is left with; None where the run has none.

    It is the final clone, or the one from before the refusals if that is better: a refusal shows, so that whoever meets
    them can stop there, and need not spoil a clone with what is no answer. A wrong answer does not show.
    """
    if record.stolen is None:
        return None
    before = before_refusal(record)
    return max(record.stolen.clone_accuracy, before.clone_accuracy if before else 0.0)
