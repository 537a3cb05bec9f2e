"""Limits that all new seeds must be beyond: where they lie, and how often normal seeds pass them."""

import numpy as np
import pytest
from msbench.leaderboard.limits import (
    CLEARANCE,
    DISTANCE,
    LEAST_SPREAD,
    PLAIN,
    SHARE,
    factor,
    limits,
    without_the_oddest,
)


@pytest.mark.parametrize(("old", "new", "rate"), [(20, 3, 0.02), (20, 1, 0.05), (6, 4, 0.01)])
def test_normal_seeds_are_beyond_the_same_limit_at_the_rate_given(old: int, new: int, rate: float) -> None:
    draw, passes = np.random.default_rng(1), 200_000
    low, high = limits(draw.normal(5, 3, size=(passes, old)), new, rate, PLAIN)
    fresh = draw.normal(5, 3, size=(passes, new))
    beyond = (fresh.min(axis=1) > high) | (fresh.max(axis=1) < low)
    assert beyond.mean() == pytest.approx(rate, rel=0.06)


def test_a_limit_lies_as_many_standard_deviations_away_as_the_factor_says() -> None:
    old = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    low, high = limits(old, 3, 0.01, PLAIN)
    reach = factor(5, 3, 0.01) * np.std([1, 2, 3, 4], ddof=1)
    assert (low, high) == pytest.approx((2.5 - reach, 2.5 + reach), rel=1e-12)


def test_the_oddest_is_left_out_of_each_baseline_alone() -> None:
    middle, spread = without_the_oddest(np.array([[1.0, 2.0, 3.0, -50.0, 2.0], [7.0, 1.0, 1.0, 2.0, 2.0]]))
    np.testing.assert_allclose(middle, [2.0, 1.5], rtol=1e-15)
    np.testing.assert_allclose(spread, [np.std([1, 2, 3, 2], ddof=1), np.std([1, 1, 2, 2], ddof=1)], rtol=1e-15)


def test_shares_are_judged_as_log_odds_and_distances_as_logarithms() -> None:
    shares = np.array([0.9, 0.95, 0.97, 0.98, 0.99])
    odds = limits(np.log(shares / (1 - shares)), 3, 0.01, PLAIN)
    np.testing.assert_allclose(limits(shares, 3, 0.01, SHARE), [1 / (1 + np.exp(-each)) for each in odds], rtol=1e-9)
    logs = limits(np.log(shares), 3, 0.01, PLAIN)
    np.testing.assert_allclose(limits(shares, 3, 0.01, DISTANCE), np.exp(logs), rtol=1e-9)


@pytest.mark.parametrize("values", [(0.0,) * 5, (1.0,) * 5, (0.0, 1.0, 1.0, 1.0, 1.0), (0.002, 0.01, 0.001, 0.0, 0.05)])
def test_at_the_end_of_a_range_limits_are_finite_and_stay_inside(values: tuple[float, ...]) -> None:
    low, high = limits(np.array(values), 3, 0.01, SHARE)
    assert 0 < low < high < 1
    low, high = limits(np.array(values), 3, 0.01, DISTANCE)
    assert 0 < low < high < np.inf


def test_seeds_that_agree_by_luck_do_not_make_limits_of_nothing() -> None:
    low, high = limits(np.full(20, 0.5), 3, 0.01, PLAIN)
    assert high - low == pytest.approx(2 * factor(20, 3, 0.01) * LEAST_SPREAD)
    low, high = limits(np.full(20, 0.97), 3, 0.01, SHARE)
    assert high - low == pytest.approx(2 * factor(20, 3, 0.01) * LEAST_SPREAD, rel=0.05)
    assert LEAST_SPREAD > CLEARANCE, "otherwise seeds at the end of a range have no spread at all"


def test_so_many_seeds_agree_so_seldom_that_the_mean_is_limit_enough() -> None:
    assert factor(20, 60, 0.01) == 0
    assert factor(20, 3, 0.001) > factor(20, 5, 0.001) > factor(20, 7, 0.001) > 0
