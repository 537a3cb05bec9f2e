"""Limits that new seeds without an odd one must be beyond: where they lie, and how often normal seeds pass them."""

import math

import numpy as np
import pytest
from msbench.leaderboard.limits import CLEARANCE, DISTANCE, LEAST_SPREAD, PLAIN, SHARE, Span, factor, limits, span


@pytest.mark.parametrize(("old", "new", "rate"), [(20, 3, 0.01), (6, 4, 0.02), (10, 10, 0.05), (20, 2, 0.01)])
def test_normal_seeds_are_beyond_the_limits_at_the_rate_given(old: int, new: int, rate: float) -> None:
    draw, passes = np.random.default_rng(1), 200_000
    known = limits(draw.normal(5, 3, size=(passes, old)), new, rate, PLAIN)
    sides = span(draw.normal(5, 3, size=(passes, new)), PLAIN).side(known)
    assert abs(sides).mean() == pytest.approx(rate, rel=0.06)
    assert (sides > 0).mean() == pytest.approx(rate / 2, rel=0.1)


def test_a_limit_lies_as_many_standard_deviations_away_as_the_factor_says() -> None:
    old = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    reach = factor(5, 3, 0.01) * np.std(old, ddof=1)
    assert limits(old, 3, 0.01, PLAIN) == pytest.approx((3.8 - reach, 3.8 + reach), rel=1e-12)


def test_a_span_reaches_from_the_mean_without_the_highest_to_that_without_the_lowest() -> None:
    assert span(np.array([3.0, 1.0, 8.0]), PLAIN) == (2.0, 5.5)
    low, high = span(np.array([[3.0, 1.0, 8.0, 4.0], [0.0, 0.0, 6.0, 0.0]]), PLAIN)
    np.testing.assert_allclose([low, high], [[8 / 3, 0.0], [5.0, 2.0]], rtol=1e-15)
    assert span(np.array([0.25, 1.0, 4.0]), DISTANCE) == pytest.approx((0.5, 2.0)), "means of logarithms"
    odds = [math.log(share / (1 - share)) for share in (0.6, 0.9)]
    assert span(np.array([0.6, 0.9, 0.99]), SHARE).low == pytest.approx(1 / (1 + math.exp(-sum(odds) / 2)))


def test_on_which_side_a_span_lies() -> None:
    known = Span(np.array(2.0), np.array(4.0))
    for ends, side in (((0, 1.9), -1), ((0, 2), 0), ((3, 3), 0), ((1, 9), 0), ((4, 9), 0), ((4.1, 9), 1)):
        assert Span(np.array(ends[0]), np.array(ends[1])).side(known) == side


@pytest.mark.parametrize("odd", [-1e9, 1e9])
def test_one_odd_seed_alone_is_never_beyond(odd: float) -> None:
    old = np.random.default_rng(0).standard_normal(20)
    known = limits(old, 3, 0.01, PLAIN)
    assert span(np.array([0.0, 0.1, odd]), PLAIN).side(known) == 0
    assert span(np.array([9.0, 9.1, odd]), PLAIN).side(known) == (odd > 0)


def test_shares_are_judged_as_log_odds_and_distances_as_logarithms() -> None:
    shares = np.array([0.9, 0.95, 0.97, 0.98, 0.99])
    odds = limits(np.log(shares / (1 - shares)), 3, 0.01, PLAIN)
    np.testing.assert_allclose(limits(shares, 3, 0.01, SHARE), [1 / (1 + np.exp(-each)) for each in odds], rtol=1e-9)
    logs = limits(np.log(shares), 3, 0.01, PLAIN)
    np.testing.assert_allclose(limits(shares, 3, 0.01, DISTANCE), np.exp(logs), rtol=1e-9)


@pytest.mark.parametrize("values", [(0.0,) * 5, (1.0,) * 5, (0.0, 1.0, 1.0, 1.0, 1.0), (0.002, 0.01, 0.001, 0.0, 0.05)])
def test_at_the_end_of_a_range_limits_are_finite_and_stay_inside(values: tuple[float, ...]) -> None:
    low, high = limits(np.array(values), 3, 0.05, SHARE)
    assert 0 < low < high < 1
    low, high = limits(np.array(values), 3, 0.05, DISTANCE)
    assert 0 < low < high < np.inf


def test_seeds_that_agree_by_luck_do_not_make_limits_of_nothing() -> None:
    low, high = limits(np.full(20, 0.5), 3, 0.01, PLAIN)
    assert high - low == pytest.approx(2 * factor(20, 3, 0.01) * LEAST_SPREAD)
    low, high = limits(np.full(20, 0.97), 3, 0.01, SHARE)
    assert high - low == pytest.approx(2 * factor(20, 3, 0.01) * LEAST_SPREAD, rel=0.05)
    assert LEAST_SPREAD > CLEARANCE, "otherwise seeds at the end of a range have no spread at all"


def test_more_seeds_tell_smaller_changes() -> None:
    assert factor(20, 3, 0.001) > factor(20, 5, 0.001) > factor(20, 20, 0.001) > factor(40, 20, 0.001) > 0.5
