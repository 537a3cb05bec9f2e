"""How far new seeds may lie from old ones before something other than the seed must have changed.

More has been measured where the mean of the new seeds without the highest of them lies above an upper limit, and less
where that without the lowest lies below a lower one: one odd seed raises no alarm. The limits lie the same number of
standard deviations above and below the old seeds' mean. Shares are taken as log odds and distances as logarithms:
there, seeds spread about evenly to both sides, and every limit lies inside of what is possible.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST_OLD = 5
"""With fewer old seeds than this, their spread says next to nothing."""
FEWEST_NEW = 3
"""With fewer new seeds than this, nothing is left to average without the odd one."""
LEAST_SPREAD = 0.002
"""A standard deviation below this is a share of a few test images, and too small to judge by."""
CLEARANCE = 0.001
"""Values closer than this to the end of their range count as just so close: log odds and logarithms must be finite."""
DRAWS = 2_000
"""Samples of new seeds that `factor` is found with; it varies by less than half a percent with them."""


class Scale(NamedTuple):
    """Where a metric's seeds spread evenly, and the way back."""

    there: Callable[[Array], Array]
    back: Callable[[Array], Array]


def _log_odds(shares: Array) -> Array:
    inside = np.clip(shares, CLEARANCE, 1 - CLEARANCE)
    return np.log(inside / (1 - inside))


def _as_it_is(values: Array) -> Array:
    return values


SHARE = Scale(_log_odds, lambda odds: (1 + np.tanh(odds / 2)) / 2)
"""Of values from 0 to 1."""
DISTANCE = Scale(lambda values: np.log(np.maximum(values, CLEARANCE)), np.exp)
"""Of values from 0 up."""
PLAIN = Scale(_as_it_is, _as_it_is)
"""Of values far from the ends of their range."""


class Span(NamedTuple):
    """From the lower to the higher, each (...)."""

    low: Array
    high: Array

    def side(self, limits: "Span") -> Array:
        """1 where all of this lies above the limits, -1 where all of it lies below, 0 where they share anything."""
        return np.where(self.low > limits.high, 1, np.where(self.high < limits.low, -1, 0))


def span(new: Array, scale: Scale) -> Span:
    """From the mean without the highest seed to that without the lowest, of values (..., m), m at least 2."""
    seeds = np.sort(scale.there(new), axis=-1)
    return Span(scale.back(seeds[..., :-1].mean(axis=-1)), scale.back(seeds[..., 1:].mean(axis=-1)))


def limits(old: Array, new: int, rate: float, scale: Scale) -> Span:
    """What spans of new seeds lie beyond at the rate given, if seeds are normal on the scale.

    Args:
        old: one value a seed, (..., n) with n at least `FEWEST_OLD`, of as many baselines as there are.
        new: number of new seeds, at least `FEWEST_NEW`.
        rate: between 0 and 1, for both sides together.
    """
    seeds = scale.there(old)
    middle, spread = seeds.mean(axis=-1), seeds.std(axis=-1, ddof=1)
    usual = scale.back(middle)
    least = scale.there(usual + LEAST_SPREAD / 2) - scale.there(usual - LEAST_SPREAD / 2)
    reach = factor(old.shape[-1], new, rate) * np.maximum(spread, least)
    return Span(scale.back(middle - reach), scale.back(middle + reach))


@cache
def factor(old: int, new: int, rate: float) -> float:
    """How many standard deviations of ``old`` seeds a limit lies from their mean, as `limits` has it.

    Normal seeds' mean without the highest is their mean less a gap, and the one is independent of the other. With the
    gap given, the distance from the old seeds' mean in standard deviations of theirs is Student's t, noncentral.
    """
    from scipy.optimize import brentq
    from scipy.special import nctdtr

    seeds = np.random.default_rng(0).standard_normal((DRAWS, new))
    gaps = seeds.mean(axis=-1) - span(seeds, PLAIN).low
    width = np.sqrt(1 / new + 1 / old)

    def excess(k: float) -> float:
        return 2 * float(1 - nctdtr(old - 1, -gaps / width, k / width).mean()) - rate

    most = 1.0
    while excess(most) > 0:
        most *= 2
    return float(brentq(excess, 0, most))
