"""Every known way to look better than one is, tried on the real harness: a flag, a cap or a recovery catches it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msbench.benchmark import reliability
from msbench.leaderboard.board import DROP_CAPS, L1_CAPS
from msbench.leaderboard.record import Record

Steal = Callable[..., Record]

POOL = "true_data:epochs=10"
"""Two dozen steps that give a good clone from honest answers."""
IMAGES = 640


def fits_some_tier(record: Record, shifted: bool = True) -> bool:
    """Whether the most generous caps let the defense in, on the test set and on its shifted copy."""
    assert record.target is not None and record.paid is not None and record.paid.shifted is not None
    drops = [record.target.accuracy - record.paid.defended_accuracy]
    if shifted:
        drops.append(record.paid.shifted.undefended - record.paid.shifted.defended)
    return max(drops) <= max(DROP_CAPS) and record.paid.l1.mean <= max(L1_CAPS)


def agreement(record: Record) -> float:
    assert record.stolen is not None, record.error
    return record.stolen.agreement


# ------------------------------------------------------------------------------------- caught by a recovery


@pytest.mark.parametrize(
    ("cheat", "recovery"), [("Temperature100", "temperature"), ("LinearMap", "linear")], ids=["temperature", "linear"]
)
def test_what_can_be_undone_scores_as_none(steal: Steal, cheat: str, recovery: str) -> None:
    honest, hidden, undone = (
        agreement(steal(defense, POOL, IMAGES, recovery=counter))
        for defense, counter in [("none", recovery), (cheat, "none"), (cheat, recovery)]
    )
    assert hidden < 0.5 < honest  # it looks like a defense
    assert abs(undone - honest) < 0.03


def test_fresh_noise_is_averaged_away(steal: Steal) -> None:
    single = steal("FreshNoise:declared=true", POOL, IMAGES)
    averaged = steal("FreshNoise:declared=true", POOL, 16 * IMAGES, recovery="averaging:repeats=16")
    assert averaged.budget.spent == 16 * IMAGES  # repeats are charged
    assert agreement(averaged) > agreement(single) + 0.15
    assert single.flags == []  # what is declared is no trick


# ----------------------------------------------------------------------------------------- caught by the caps


def test_answers_that_say_nothing_meet_no_cap(steal: Steal) -> None:
    assert fits_some_tier(steal("none"))
    assert not fits_some_tier(steal("Uniform"))
    keeps_the_top_class = steal("Uniform:lead=0.01")
    assert keeps_the_top_class.paid is not None and keeps_the_top_class.paid.argmax_changed == 0
    assert not fits_some_tier(keeps_the_top_class)


def test_garbage_for_all_but_exact_data_is_paid_for_on_the_shifted_copy(steal: Steal) -> None:
    record = steal("OnlyNatural")
    assert fits_some_tier(record, shifted=False)
    assert not fits_some_tier(record)
    assert reliability.FRAGILE in record.flags


def test_what_is_kept_from_those_with_a_name_is_kept_from_honest_users(steal: Steal) -> None:
    record = steal("Quota")
    assert record.paid is not None and record.target is not None
    assert record.paid.defended_accuracy < 0.3 < record.target.accuracy
    assert record.paid.shifted is not None and record.paid.shifted.argmax_changed > 0.5
    assert not fits_some_tier(record)


# ----------------------------------------------------------------------------------------- caught by a flag


@pytest.mark.parametrize(
    ("cheat", "flags"),
    [
        ("FreshNoise", {reliability.REPEATED}),
        ("LargeBatches", {reliability.BATCHED, reliability.SINGLED_OUT}),
        ("LargeBatches:stateful=true", {reliability.BATCHED}),
        ("Later", {reliability.DRIFTED, reliability.SINGLED_OUT, reliability.MOVED}),
        ("FrontOfTheBatch", {reliability.ORDERED, reliability.BATCHED}),
        ("Later:counts=strange", {reliability.DRIFTED, reliability.SINGLED_OUT}),
        ("Later:counts=account", {reliability.PERSONAL, reliability.SINGLED_OUT}),
        ("Later:counts=account,until=1100", {reliability.SINGLED_OUT}),  # honest again when the attack ends
        # Poisons all, honest users too, until shortly before their costs are measured.
        ("Later:stateful=true,until=2150", {reliability.MOVED, reliability.DEARER}),
        ("Named:until=3000", {reliability.PERSONAL}),  # honest to all when the attack ends
        ("KnowsTheTest", {reliability.RECOGNIZED, reliability.FRAGILE}),
        ("KnowsTheShifts", {reliability.RECOGNIZED}),
        ("SomeBatches", {reliability.BATCHED}),  # all but those that costs are measured in
        ("SomeBatches:low=100,high=120,stateful=true", {reliability.BATCHED}),  # those of the attack
        ("Quota:limit=500", {reliability.TIRED}),
        ("Quota:limit=1800", {reliability.LATE}),  # after more queries than there are images of digits
        ("QuietQuota:limit=1800", {reliability.LATE}),
        ("FalseAlarm:limit=1800", {reliability.LATE}),
    ],
)
def test_a_cheat_is_flagged(steal: Steal, cheat: str, flags: set[str]) -> None:
    record = steal(cheat, "random_noise:batch=110", 2_200)
    assert record.status == "done"
    assert flags <= set(record.flags)


@pytest.mark.parametrize(
    "defense", ["none", "noise:per_input=true", "noise:scale=0.5", "modelguard_s", "prada:action=poison+noise"]
)
def test_what_keeps_its_promises_is_not_flagged(steal: Steal, defense: str) -> None:
    assert steal(defense).flags == []


# ---------------------------------------------------------------------------------------- without any effect


def test_no_account_goes_by_a_name_that_a_defense_could_know(steal: Steal) -> None:
    for name in ("customer", "attack", "attacker", "visitor"):
        record = steal(f"Named:name={name}")
        assert record.paid is not None and record.paid.l1_queries is not None
        assert (record.paid.l1_queries.max, record.flags) == (0.0, [])


@pytest.mark.parametrize("stateful", ["false", "true"])
def test_who_asks_is_kept_from_a_defense_that_does_not_declare_that_it_has_to_know(steal: Steal, stateful: str) -> None:
    record = steal(f"Later:counts=account,open=false,stateful={stateful}", "random_noise:batch=110", 2_200)
    assert record.paid is not None and record.paid.l1_queries is not None
    assert (record.paid.l1_queries.max, record.flags) == (0.0, [])


def test_a_defense_cannot_change_the_pixels_that_an_attack_learns_from(steal: Steal) -> None:
    record, honest = steal("Smears"), steal("none")
    assert record.status == "done"
    assert (record.stolen, record.curve, record.paid) == (honest.stolen, honest.curve, honest.paid)


def test_a_changed_target_is_measured_against_the_one_that_it_was(steal: Steal) -> None:
    changed, same_answers = steal("Flattens:served=true").paid, steal("Temperature100").paid
    assert changed is not None and same_answers is not None
    assert same_answers.l1.mean > 1
    assert changed.l1.mean == pytest.approx(same_answers.l1.mean, abs=1e-4)
    assert changed.argmax_changed == 0


# ------------------------------------------------------------------------------------ refused by the harness


def test_a_change_of_the_target_that_is_not_served_is_refused(steal: Steal) -> None:
    record = steal("Flattens")
    assert (record.status, record.budget.spent) == ("failed", 0)
    assert record.error is not None and record.error.type == "ContractViolation"
    assert "return the changed network from deploy()" in record.error.message


@pytest.mark.parametrize("when", ["clone", "diagnostics", "measured"])
def test_answers_that_were_not_charged_are_refused(steal: Steal, when: str) -> None:
    record = steal("none", f"{Path(__file__).with_name('thieves.py')}:Thief:batch=64,when={when}")
    assert (record.status, record.stolen) == ("failed", None)
    assert record.error is not None and record.error.type == "ContractViolation"
    assert "images but charged 1200" in record.error.message


@pytest.mark.parametrize(
    ("cheat", "words"),
    [
        ("Logits", "logits must go through softmax"),
        ("SaysLabels", "declares labels_only"),
        ("OfAnotherStage:does=serves", "stage='training'"),
        ("OfAnotherStage:does=judges", "stage='detection'"),
        ("OfAnotherStage:does=nothing", "gives no verdict"),
        ("Helped:what=surrogate", "add 'surrogate' to its traits' needs"),
        ("Helped:what=target", "add 'logits' to its traits' needs"),
        ("Helped:what=data", "add 'data' to its traits' needs"),
        ("Helped:what=pool", "add 'queries' to its traits' needs"),
    ],
)
def test_what_is_not_as_declared_is_refused(steal: Steal, cheat: str, words: str) -> None:
    record = steal(cheat)
    assert (record.status, record.stolen) == ("failed", None)
    assert record.error is not None and record.error.type == "ContractViolation"
    assert words in record.error.message
