"""How often the gate on attack strength fails an unchanged tree, and which changes it tells.

New seeds must not be among those that made the limits: an odd seed would widen its own. So the committed baselines are
resampled in two ways, and limits made anew each time: they are split into three new seeds and the others that make the
limits, in all ways, and both are drawn with replacement, apart. That takes twenty seeds, which those of `GATES` have;
the five of tiny's say what a board's attacks should reach, and no more.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msbench.leaderboard.baseline import (
    FALSE_ALARMS,
    FOLDER,
    NORMAL_FALSE_ALARMS,
    SCALES,
    STRENGTH,
    Baseline,
    Metric,
    load_baseline,
)
from msbench.leaderboard.limits import limits, span

GATES = ("ci", "smoke")
NEW = 3
BOOTSTRAPS = 20_000


def splits(count: int, cells: int) -> list[tuple[Any, Any]]:
    """For each cell the old and the new seeds of all splits: (P, count - 3) and (P, 3)."""
    new = np.array(list(combinations(range(count), NEW)))
    old = np.array([sorted(set(range(count)) - set(each)) for each in new])
    return [(old, new)] * cells


def bootstraps(count: int, cells: int) -> list[tuple[Any, Any]]:
    """As `splits`, drawn with replacement, the new apart from the old."""
    draw = np.random.default_rng(0)
    return [(draw.integers(count, size=(BOOTSTRAPS, count)), draw.integers(count, size=(BOOTSTRAPS, NEW)))] * cells


def rate(known: Baseline) -> float:
    """What each comparison of a whole pass is allowed."""
    return NORMAL_FALSE_ALARMS / sum(bool(cell.values(metric)) for cell in known.cells for metric in STRENGTH)


def failures(known: Baseline, resample: Any) -> Iterator[Any]:
    """Of each cell in which of the passes (P,) it fails."""
    (count,) = {len(cell.seeds) for cell in known.cells}
    assert count >= 20
    for cell, (old, new) in zip(known.cells, resample(count, len(known.cells)), strict=True):
        failed = np.zeros(len(new), dtype=bool)
        for metric, scale in SCALES.items():
            if cell.values(metric):
                values = np.array(cell.values(metric))
                failed |= span(values[new], scale).side(limits(values[old], NEW, rate(known), scale)) != 0
        yield failed


@pytest.mark.parametrize("resample", [splits, bootstraps])
@pytest.mark.parametrize("suite", GATES)
def test_an_unchanged_tree_fails_less_than_once_in_a_hundred(suite: str, resample: Any) -> None:
    failed = list(failures(load_baseline(suite), resample))
    alike = np.logical_or.reduce(failed).mean()
    apart = 1 - math.prod(1 - each.mean() for each in failed)
    print(f"{alike:.4f} where all cells have the same seeds, {apart:.4f} where each has its own")
    assert max(alike, apart) <= FALSE_ALARMS


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_weaker_and_stronger_can_both_be_reached(path: Path) -> None:
    """But for the entropy of labels that differ from seed to seed as random noise's do, which may be all there is."""
    known = load_baseline(str(path))
    ranges: dict[Metric, tuple[float, float]] = {
        "clone_accuracy": (0, 1),
        "area_under_curve": (0, 1),
        "kl": (0, math.inf),
        "label_entropy": (0, math.log(10) if path.stem == "ci" else math.inf),
        "query_distance": (0, 1),
    }
    for cell in known.cells:
        for metric, (least, most) in ranges.items():
            low, high = cell.limits(metric, NEW, len(known.cells) * len(STRENGTH))
            assert least < low < high < most, (cell.key, metric)


@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize("suite", GATES)
def test_a_change_of_five_standard_deviations_is_told_nine_times_in_ten(suite: str, direction: int) -> None:
    """In each metric of each cell alone: limits that nothing is beyond would raise no false alarm either."""
    known = load_baseline(suite)
    for cell, (old, new) in zip(known.cells, splits(20, len(known.cells)), strict=True):
        for metric, scale in SCALES.items():
            values = np.array(cell.values(metric))
            there = scale.there(values)
            shifted = scale.back(there[new] + 5 * direction * there.std(ddof=1))
            told = span(shifted, scale).side(limits(values[old], NEW, rate(known), scale)) == direction
            assert told.mean() >= 0.9, (cell.key, metric)
