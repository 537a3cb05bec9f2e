"""What is read off a run's curve, without torch: where it is measured, and where it is checked again."""

import math
from collections.abc import Sequence

from .record import CurvePoint


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
