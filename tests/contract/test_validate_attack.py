"""The contract suite of attacks passes an honest attack, and catches broken ones by the right check."""

from pathlib import Path

import pytest
from msbench.benchmark.validate_attack import validate_attack
from msbench.errors import UnknownName

BROKEN = Path(__file__).with_name("broken_attacks.py")


def failures(name: str) -> dict[str, str]:
    return {check.name: check.detail for check in validate_attack(f"{BROKEN}:{name}") if not check.passed}


@pytest.mark.parametrize("name", ["Honest", "HonestPool"])
def test_an_honest_attack_passes(name: str) -> None:
    assert failures(name) == {}


def test_a_stated_reason_for_stopping_early_is_passed_on() -> None:
    checks = {check.name: check for check in validate_attack(f"{BROKEN}:HonestPool")}
    assert "ended after 500 of 999 queries: the pool is used up" in checks["budget"].detail


@pytest.mark.parametrize(
    ("name", "caught_by"),
    [
        ("Impatient", {"setup"}),
        ("LeavesTrainingOn", {"clone"}),
        ("Diverges", {"clone"}),
        ("WrongShape", {"clone"}),
        ("DisturbedByEvaluation", {"evaluation"}),
        ("IgnoresItsSeed", {"seed"}),
        ("ForgetsItsGenerator", {"resuming"}),
        ("ForgetsItsMomentum", {"resuming"}),
        ("SavesObjects", {"resuming"}),
        ("GloballyRandom", {"evaluation", "seed", "resuming", "global random state"}),
    ],
)
def test_a_broken_attack_is_caught_by_the_check_that_is_about_it(name: str, caught_by: set[str]) -> None:
    assert failures(name).keys() == caught_by


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Overspends", "left (budget 1)"),
        ("OverspendsQuietly", "asked for more queries than were left"),
        ("NeverEnds", "has not ended after 2010 steps"),
        ("QuitsSilently", "ended with 899 queries left and gave no reason (budget 999)"),
        ("Crashes", "raised ZeroDivisionError: division by zero (budget 1)"),
    ],
)
def test_an_attack_that_does_not_keep_to_its_budget_is_told_how(name: str, words: str) -> None:
    assert words in failures(name)["budget"]


def test_unknown_names_raise() -> None:
    with pytest.raises(UnknownName, match="knockoff"):
        validate_attack("knockof")
