"""When a run that was done again speaks for its record, and when against it."""

import pytest
from msbench.leaderboard.verification import judge, threshold
from scipy import stats

SEEDS = (0.78, 0.79, 0.80)


def other_machine(make_record, **changes):
    """The same run where rounding made another clone of it, and another target."""
    return make_record(target__digest="cd" * 32, stolen__kl=0.65, stolen__l1=0.44, **changes)


def others(make_record):
    return [
        make_record(spec__seed=seed, stolen__clone_accuracy=value, stolen__agreement=value + 0.002, curve=[])
        for seed, value in enumerate(SEEDS, start=1)
    ]


def test_equal_numbers_are_a_proof_whatever_the_clock_says(make_record):
    again = make_record(timing__wall=99.0, env__threads=64, timing__created_utc="2030-01-02T03:04:05+00:00")
    verdict = judge(make_record(), again)
    assert (verdict.outcome, verdict.holds, verdict.differences) == ("reproduced", True, ())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stolen__clone_accuracy": 0.5}, "stolen.clone_accuracy: 0.5 in the record, 0.788 now"),
        ({"paid__l1": {"mean": 0.07, "p95": 0.2, "max": 0.5}}, "paid.l1.mean: 0.07 in the record, 0.08 now"),
        ({"flags": ["nice"]}, 'flags.0: "nice" in the record, null now'),
        ({"stolen__kl": 0.1, "stolen__l1": 0.1}, "stolen.kl: 0.1 in the record, 0.61 now"),
    ],
)
def test_where_all_else_is_equal_one_other_number_is_an_edit(make_record, change, told):
    verdict = judge(make_record(**change), make_record())
    assert (verdict.outcome, verdict.holds) == ("edited", False)
    assert told in verdict.differences


def test_one_clone_gives_away_an_edit_on_any_machine(make_record):
    again = make_record(env__torch="9.9", target__digest="cd" * 32)
    assert judge(make_record(stolen__agreement_released=0.1), again).outcome == "edited"


@pytest.mark.parametrize(("accuracy", "outcome"), [(0.788, "within"), (0.70, "beyond"), (0.9, "beyond")])
def test_on_another_machine_the_record_must_lie_where_seeds_lie(make_record, accuracy, outcome):
    changes = {"stolen__clone_accuracy": accuracy, "stolen__agreement": accuracy + 0.003}
    verdict = judge(make_record(**changes), other_machine(make_record), others(make_record))
    assert (verdict.outcome, verdict.holds) == (outcome, outcome == "within")
    assert "over 4 runs" in verdict.text


def test_without_other_seeds_nothing_is_decided_there(make_record):
    verdict = judge(make_record(), other_machine(make_record), [make_record()])
    assert (verdict.outcome, verdict.holds) == ("undecided", False)


@pytest.mark.parametrize(
    "changes",
    [
        {"env__torch": "2.9"},
        {"env__threads": 1},
        {"env__device": "cuda", "env__arithmetic": None},
        {"env__arithmetic": "0123456789ab"},
        {"target__digest": "cd" * 32},
    ],
)
def test_elsewhere_other_digits_are_no_edit(make_record, changes):
    again = make_record(stolen__kl=0.65, stolen__l1=0.44, **changes)
    assert judge(make_record(), again, others(make_record)).outcome == "within"


def test_the_threshold_is_a_prediction_interval_for_one_more_seed():
    mean, spread, n = 0.79, 0.01, 3
    assert threshold(SEEDS) == pytest.approx(stats.t.ppf(0.995, n - 1) * spread * (1 + 1 / n) ** 0.5)
    assert mean == pytest.approx(sum(SEEDS) / n)
    assert threshold([0.5]) is None
