"""How far new seeds may lie from old ones before something other than the seed must have changed.

A metric has changed where all new seeds lie beyond the same limit: an odd one among them raises no alarm, though it may
hide a change of the others. The limits lie the same number of standard deviations below and above the old seeds' mean,
both taken without the oddest of them, so that an odd one among the old does not widen them. Shares are taken as log
odds and distances as logarithms: there, seeds spread about evenly to both sides, and every limit lies inside of what
is possible.

That all seeds must agree asks little of the tails: a limit that one seed passes once in twenty, three pass together
once in eight thousand. Twenty old seeds tell where the former is, and could not tell where a mean's limit is.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST_OLD = 5
"""With fewer old seeds than this, the spread that is left without the oddest says next to nothing."""
FEWEST_NEW = 3
"""With fewer new seeds than this, odd ones are too often all there is, and the rate is more than what it should be."""
LEAST_SPREAD = 0.002
"""A standard deviation below this is a share of a few test images, and too small to judge by."""
CLEARANCE = 0.001
"""Values closer than this to the end of their range count as just so close: log odds and logarithms must be finite."""
DRAWS = 20_000
"""Samples of normal seeds that `factor` is found with; it varies by half a percent or so with them."""


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


class Limits(NamedTuple):
    """Between these, limits included, seeds explain where a new one lies."""

    low: Array
    high: Array


def limits(old: Array, new: int, rate: float, scale: Scale) -> Limits:
    """Limits, of which all new seeds are beyond the same one at the rate given, if seeds are normal on the scale.

    Args:
        old: one value a seed, (..., n) with n at least `FEWEST_OLD`, of as many baselines as there are.
        new: number of new seeds, at least 1.
        rate: between 0 and 1, for both limits together.

    Returns limits of shape (...).
    """
    middle, spread = without_the_oddest(scale.there(old))
    usual = scale.back(middle)
    least = scale.there(usual + LEAST_SPREAD / 2) - scale.there(usual - LEAST_SPREAD / 2)
    reach = factor(old.shape[-1], new, rate) * np.maximum(spread, least)
    return Limits(scale.back(middle - reach), scale.back(middle + reach))


def without_the_oddest(seeds: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over the last axis (..., n), without the value farthest from the median."""
    oddest = np.abs(seeds - np.median(seeds, axis=-1, keepdims=True)).argmax(axis=-1)
    kept = np.arange(seeds.shape[-1]) != oddest[..., None]
    return seeds.mean(axis=-1, where=kept), seeds.std(axis=-1, ddof=1, where=kept)


@cache
def factor(old: int, new: int, rate: float) -> float:
    """How many standard deviations a limit lies from the mean, as `without_the_oddest` has both of ``old`` seeds.

    All of ``new`` seeds lie beyond the same limit at the rate given, if seeds are normal. 0 where that is rarer still.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    middle, spread = without_the_oddest(np.random.default_rng(0).standard_normal((DRAWS, old)))

    def excess(k: float) -> float:
        beyond = ndtr(middle - k * spread) ** new + ndtr(-middle - k * spread) ** new
        return float(beyond.mean()) - rate

    most = 1.0
    while excess(most) > 0:
        most *= 2
    return float(brentq(excess, 0, most)) if excess(0) > 0 else 0.0
