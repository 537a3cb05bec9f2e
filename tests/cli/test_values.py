"""Budgets, seeds and names with wildcards."""

import pytest
from msbench.benchmark.cli.values import expand, parse_budget, parse_seeds
from msbench.components import names
from msbench.errors import UnknownName, UsageError


@pytest.mark.parametrize(
    ("text", "queries"),
    [("60000", 60_000), ("60k", 60_000), ("2M", 2_000_000), ("1.5k", 1_500), ("60_000", 60_000), ("1", 1)],
)
def test_budget(text, queries):
    assert parse_budget(text) == queries


@pytest.mark.parametrize(
    "text", ["", "abc", "0", "-5", "1.5", "0.0001k", "1e4", "k", "60kk", "60 k", "nan", "inf", "٣"]
)
def test_unusable_budget_is_named(text):
    with pytest.raises(UsageError, match="such as 60000, 60k or 2M") as caught:
        parse_budget(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", (0,)), ("0-2", (0, 1, 2)), ("0,3,5", (0, 3, 5)), ("7,0-1", (7, 0, 1)), ("3-3", (3,))],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "2-0", "0-", "0,,1", "1.5", "0-999999999"])
def test_unusable_seeds_are_named(text):
    with pytest.raises(UsageError) as caught:
        parse_seeds(text)
    assert repr(text) in str(caught.value)


def test_a_name_without_wildcards_is_left_alone():
    assert expand("attack", "no_such:a=*") == ["no_such:a=*"]


def test_wildcards_keep_the_parameters():
    assert expand("recovery", "a[rv]*:x=1") == ["argmax:x=1", "averaging:x=1"]


def test_a_star_is_every_name():
    assert expand("recovery", "*") == names("recovery")


def test_a_pattern_without_a_match_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean dfme"):
        expand("attack", "dfmee*")
