"""When a run that was done again speaks for its record, and when against it."""

import pytest
from msbench.leaderboard.verification import WIDEST, judge, threshold
from scipy import stats

SEEDS = (0.78, 0.79, 0.80)


def other_machine(make_record, **changes):
    """The same run where rounding made another clone of it, and another target."""
    return make_record(target__digest="cd" * 32, stolen__kl=0.65, stolen__l1=0.44, **changes)


def others(make_record, values=SEEDS, **changes):
    return [
        make_record(spec__seed=seed, stolen__clone_accuracy=value, stolen__agreement=value + 0.002, curve=[], **changes)
        for seed, value in enumerate(values, start=1)
    ]


def distances(mean):
    return {"mean": mean, "p95": min(2.0, 2.5 * mean), "max": 2.0}


def shifted(**changes):
    return {"images": 1000, "undefended": 0.941, "defended": 0.94, "argmax_changed": 0.001, "l1": 0.1} | changes


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


def test_clones_that_answer_everything_alike_are_not_one(make_record):
    collapsed = {"stolen__clone_accuracy": 0.1, "stolen__agreement": 0.1}
    elsewhere = make_record(stolen__agreement_released=0.11, **collapsed)
    assert judge(elsewhere, make_record(env__torch="9.9", target__digest="cd" * 32, **collapsed)).outcome != "edited"


@pytest.mark.parametrize(("accuracy", "outcome"), [(0.788, "within"), (0.70, "beyond"), (0.9, "beyond")])
def test_on_another_machine_the_record_must_lie_where_seeds_lie(make_record, accuracy, outcome):
    changes = {"stolen__clone_accuracy": accuracy, "stolen__agreement": accuracy + 0.003}
    verdict = judge(make_record(**changes), other_machine(make_record), beside=others(make_record))
    assert (verdict.outcome, verdict.holds) == (outcome, outcome == "within")
    assert "over 4 runs" in verdict.text


def test_without_other_seeds_nothing_is_decided_there(make_record):
    verdict = judge(make_record(), other_machine(make_record), beside=[make_record()])
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
    assert judge(make_record(), again, beside=others(make_record)).outcome == "within"


# ------------------------------------------------------------------------------------- what honest users pay


def elsewhere(make_record, **changes):
    """The same run on another machine, with the same weights."""
    return make_record(env__threads=64, stolen__kl=0.65, stolen__l1=0.44, **changes)


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [
        ("paid__l1", distances(0.084), distances(0.074)),
        ("paid__defended_accuracy", 0.985, 0.98),
        ("paid__defended_accuracy_before", 0.985, 1.0),
        ("paid__argmax_changed", 0.002, 0.02),
        ("paid__shifted", shifted(l1=0.104, defended=0.938), shifted(l1=0.05)),
        ("paid__shifted", shifted(undefended=0.943, argmax_changed=0.003), shifted(undefended=0.9)),
        ("paid__shifted", shifted(), shifted(defended=0.95)),
        ("target__accuracy", 0.985, 0.95),
    ],
)
def test_what_does_not_depend_on_the_attack_is_the_same_elsewhere_but_for_rounding(make_record, name, near, far):
    again, beside = elsewhere(make_record), others(make_record)
    assert judge(make_record(**{name: near}), again, beside=beside, constant=True).outcome == "within"
    refused = judge(make_record(**{name: far}), again, beside=beside, constant=True)
    assert (refused.outcome, refused.holds) == ("beyond", False)
    assert name.replace("__", ".") in refused.text
    assert "clone_accuracy" not in refused.text


@pytest.mark.parametrize(("mean", "outcome"), [(0.34, "within"), (0.05, "beyond")])
@pytest.mark.parametrize("digest", ["ab" * 32, "cd" * 32])
def test_what_chance_or_other_weights_change_must_lie_where_other_runs_lie(make_record, mean, outcome, digest):
    again = elsewhere(make_record, paid__l1=distances(0.30), target__digest=digest)
    fresh = [
        make_record(spec__seed=10 + i, stolen__clone_accuracy=0.788 + 0.002 * i, paid__l1=distances(0.30 + 0.01 * i))
        for i in (-3, -2, -1, 1, 2, 3)
    ]
    record = make_record(paid__l1=distances(mean))
    constant = digest != record.target.digest
    verdict = judge(record, again, fresh=fresh, constant=constant)
    assert verdict.outcome == outcome
    assert ("paid.l1.mean 0.0500, here 0.3000 ±" in verdict.text) == (outcome == "beyond")


def test_a_cost_or_a_flag_that_is_left_out_is_a_difference(make_record):
    beside = others(make_record, flags=["fragile"])
    again = elsewhere(make_record, flags=["fragile"])
    assert judge(make_record(flags=["fragile"]), again, beside=beside).outcome == "within"
    silent = judge(make_record(), again, beside=beside)
    assert (silent.outcome, silent.text.count("not flagged, as here: fragile")) == ("beyond", 1)
    assert judge(make_record(), again, fresh=others(make_record)).outcome == "within"  # other seeds do not raise it
    record = make_record(flags=["fragile"])
    record.paid.shifted = None
    assert "paid.shifted.l1 left out, here 0.1" in judge(record, again, beside=beside).text


def test_what_an_earlier_version_did_not_measure_is_not_missed(make_record):
    again = make_record(paid__flagged=0.0, paid__refused=0.0)
    old = make_record(schema_version=2, paid__shifted=None)
    assert judge(old, again).outcome == "reproduced"
    elsewhere_again = elsewhere(make_record, paid__flagged=0.0, paid__refused=0.0)
    assert judge(old, elsewhere_again, beside=others(make_record), constant=True).outcome == "within"


@pytest.mark.parametrize("changes", [{"target__num_classes": 11}, {"target__image_shape": (1, 8, 9)}])
def test_what_is_the_same_anywhere_must_be_equal(make_record, changes):
    verdict = judge(make_record(**changes), other_machine(make_record), beside=others(make_record))
    assert verdict.outcome == "beyond"


# ------------------------------------------------------------------------------------- what cannot be decided


def test_a_range_too_wide_to_say_anything_asks_for_more_runs(make_record):
    again = elsewhere(make_record)
    vague = judge(make_record(), again, beside=others(make_record, (0.6, 0.7, 0.8)), constant=True)
    assert (vague.outcome, vague.holds) == ("undecided", False)
    assert threshold([0.788, 0.6, 0.7, 0.8]) > WIDEST
    assert "run it again with more --times" in vague.text
    beyond = judge(make_record(), again, beside=others(make_record, (0.1, 0.12, 0.14)), constant=True)
    assert beyond.outcome == "undecided"  # among them is what was run here
    fresh = others(make_record, (0.781, 0.784, 0.787, 0.79))
    decided = judge(make_record(), again, fresh=fresh, beside=others(make_record, (0.1, 0.5, 0.9)), constant=True)
    assert decided.outcome == "within"  # by the runs done here alone
    assert "over 5 runs" in decided.text


def test_seeds_that_no_number_of_runs_would_tell_apart_are_said_to_be(make_record):
    def text(values):
        return judge(make_record(), elsewhere(make_record), fresh=others(make_record, values), constant=True).text

    hopeless = "no number of runs decides"
    assert hopeless in text((0.74, 0.84, 0.74, 0.84, 0.74, 0.84))
    assert hopeless not in text((0.77, 0.80))
    assert "too wide to tell: stolen.clone_accuracy 0.7880" in text((0.77, 0.80))


def test_the_threshold_is_a_prediction_interval_for_one_more_seed():
    mean, spread, n = 0.79, 0.01, 3
    assert threshold(SEEDS) == pytest.approx(stats.t.ppf(0.995, n - 1) * spread * (1 + 1 / n) ** 0.5)
    assert mean == pytest.approx(sum(SEEDS) / n)
    assert threshold([0.5]) is None
    assert threshold(SEEDS, 9) == pytest.approx(stats.t.ppf(1 - 0.01 / 18, n - 1) * spread * (1 + 1 / n) ** 0.5)
