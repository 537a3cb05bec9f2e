"""Every installed defense keeps the contract, and the suite that says so catches those that do not."""

from pathlib import Path

import pytest
from msbench.benchmark.checks import Check
from msbench.benchmark.validate_defense import validate_defense
from msbench.components import names
from msbench.errors import BadParameter, UnknownName

BROKEN = Path(__file__).with_name("broken_defenses.py")

VARIANTS = [
    "topk:k=1",
    "noise:per_input=true",
    "noise:distribution=laplace,per_input=true",
    "reverse_sigmoid:beta=1.28,keep_argmax=true",
    "noise:distribution=dirichlet",
    "noise:distribution=dirichlet,per_input=true",
    "noise:on=logits,epsilon=0.2",
    "mad:objective=raw",
    "modelguard_w:margin=1e-6,epsilon=2",
    "mad_argmax:objective=raw",
    "mad_argmax:epsilon=2",
    "adaptive_misinformation:served=target",
    "ood_gate:score=confidence,action=poison",
    "prada:action=none",
    "hoda:num_s=10,action=poison",
    "seat:pairs=1,action=none",
    "dawn:rate=0.5",
    "temperature:temperature=0.01",
    "temperature:temperature=100",
    "rounding:decimals=0",
    "grad_redirection:surrogate=untrained,direction=orthogonal",
    "grad_redirection:surrogate=untrained,direction=min_inner_product",
    "grad_redirection:surrogate=untrained,direction=watermark",
    "seat:action=poison",
    "topk:k=5+rounding:decimals=2",
    "noise:scale=0.05+label_only",
    "prada+modelguard_s",
    "prada:action=poison+noise:scale=0.05",
    "ood_gate:false_positives=0.1+label_only",
]


def failures(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


def broken(name: str) -> dict[str, str]:
    return failures(validate_defense(f"{BROKEN}:{name}"))


@pytest.mark.parametrize("spec", names("defense") + VARIANTS)
def test_keeps_the_contract(spec: str) -> None:
    assert failures(validate_defense(spec)) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("spec", names("defense"))
def test_keeps_the_contract_on_a_gpu(spec: str) -> None:
    assert failures(validate_defense(spec, "cuda")) == {}


@pytest.mark.parametrize("name", ["CountingHonestly", "OnlyTenClasses", "KnowsWhoAsksWhenAsked", "SeesTheDifference"])
def test_unusual_but_honest_defenses_pass(name: str) -> None:
    assert broken(name) == {}


@pytest.mark.parametrize(
    ("name", "caught_by"),
    [
        ("Undeclared", {"loads"}),
        ("Abstract", {"loads"}),
        ("FitsNothing", {"prepares"}),
        ("FailsToPrepare", {"prepares"}),
        ("Integers", {"inputs"}),
        ("InPlace", {"inputs"}),
        ("OneByOne", {"vectorized"}),
        ("ServesItAmongOutputs", {"prepares"}),
        ("TrainsNothing", {"stage"}),
        ("DetectsNothing", {"verdict", "flags"}),
        ("JudgesAmongOutputs", {"verdict", "flags"}),
        ("MarksEverything", {"stage"}),
        ("TurnsNoKnob", {"sweep"}),
        ("SweepsNothing", {"sweep"}),
        ("TakesData", {"prepares"}),
        ("TakesTheTarget", {"prepares"}),
        ("TakesASurrogate", {"prepares"}),
        ("TakesQueries", {"prepares"}),
        ("TakesOtherImages", {"prepares"}),
        ("ChangesUncertainTops", {"argmax"}),
        ("ServesAnotherNetwork", {"argmax"}),
        ("RandomInNameOnly", {"determinism"}),
        ("PoisonsLater", {"history"}),
        ("PoisonsLaterUnderNoise", {"batch composition", "history"}),
        ("SharesItsState", {"accounts"}),
        ("PoisonsWhoHasAnAccount", {"accounts"}),
        ("PoisonsWhoHasAnAccountUnderNoise", {"accounts"}),
        ("SharesItsStateUnderNoise", {"accounts"}),
        ("ChangesTheTargetInPlace", {"prepares"}),
        ("RefusesInNameOnly", {"verdict"}),
        ("PoisonsAmongDetectors", {"verdict"}),
        ("TakesEverybodyForOne", {"flags"}),
        ("ForgetsItsAccounts", {"flags"}),
        ("JudgesABatchByItsLast", {"flags"}),
        ("ServesTheTargetAmongThoseThatTrain", {"stage"}),
        ("RoundsWhereItSaysThatItKeepsTheTopClass", {"argmax"}),
        ("JudgesTheBatch", {"verdict", "flags"}),
        ("PoisonsLargeBatches", {"batch composition"}),
        ("PoisonsLargeBatchesUnderAState", {"batch composition"}),
        ("PoisonsVeryLargeBatches", {"batch composition"}),
        ("PoisonsLargeBatchesOfManyClasses", {"batch composition"}),
        ("PoisonsTheFrontOfABatch", {"batch composition"}),
        ("Forgetful", {"state"}),
        ("Unsavable", {"state"}),
        ("GloballyRandom", {"precision", "state", "seed", "global random state"}),
        ("SecretlyRandom", {"determinism", "batch composition", "history"}),
        ("RemembersTheLast", {"determinism", "batch composition", "history"}),
    ],
)
def test_a_lie_is_caught_by_the_check_that_is_about_it(name: str, caught_by: set[str]) -> None:
    assert broken(name).keys() == caught_by


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ReleasesNan", "NaN"),
        ("ReleasesLogits", "softmax"),
        ("Unnormalized", "not to one"),
        ("DropsAClass", "shape"),
        ("NotOneHot", "declares labels_only"),
        ("Crashes", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_not_a_probability_vector_is_named(name: str, words: str) -> None:
    assert words in broken(name)["probabilities"]


def test_a_network_that_is_served_in_the_target_s_place_is_what_is_asked() -> None:
    caught_by = {"determinism", "batch composition", "history", "seed", "global random state"}
    assert broken("ServesAShakyNetwork").keys() >= caught_by


def test_details_are_one_line() -> None:
    assert broken("FailsToPrepare") == {"prepares": "raised FileNotFoundError: no weights"}


def test_classes_that_a_parameter_does_not_fit_are_skipped_not_failed() -> None:
    checks = {check.name: check for check in validate_defense("topk:k=12")}
    assert checks["prepares"].passed
    assert "K=10 skipped" in checks["prepares"].detail
    assert "topk: k=12 exceeds the target's 10 classes: choose 1 to 10" in checks["prepares"].detail


def test_unknown_names_and_parameters_raise() -> None:
    with pytest.raises(UnknownName, match="topk"):
        validate_defense("topq")
    with pytest.raises(BadParameter, match="valid: k"):
        validate_defense("topk:q=3")
