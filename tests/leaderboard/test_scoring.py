import math

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.leaderboard.score_rows import frame, score_rows
from msbench.leaderboard.scoring import (
    CHANCE_FLOOR,
    OWN_DATA,
    UPPER_BOUND,
    Estimate,
    cells,
    estimate,
    spec_text,
    stolen_share,
    worst_cases,
)

TABLE = ("2026.1", "digits/lenet5", 60_000)

outcomes = st.lists(
    st.tuples(
        st.sampled_from(["none", "topk:k=3", "topk:k=5", "label_only"]),
        st.sampled_from(["dfme", "maze:lr=1", "maze:lr=2"]),
        st.sampled_from(["none", "argmax"]),
        st.integers(0, 3),
        st.integers(0, 100).map(lambda percent: percent / 100),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda outcome: outcome[:4],
)


def frame_of(cells):
    return frame(score_rows(cells))


@pytest.fixture(scope="session")
def runs(make_record):
    def build(outcomes):
        return [
            make_record(
                spec__defense=defense,
                spec__attack=attack,
                spec__recovery=recovery,
                spec__seed=seed,
                stolen__clone_accuracy=accuracy,
            )
            for defense, attack, recovery, seed, accuracy in outcomes
        ]

    return build


def shares(records):
    worst = worst_cases(cells(records))
    return {place[-1]: cell.stolen_share.mean for place, cell in worst.items() if cell.stolen_share is not None}


# ------------------------------------------------------------------------------------------------ formulas


@pytest.mark.parametrize(
    ("clone", "target", "floor", "share"),
    [(0.1, 0.9, 0.1, 0.0), (0.9, 0.9, 0.1, 1.0), (0.5, 0.9, 0.1, 0.5), (0.05, 0.9, 0.1, 0.0)],
)
def test_stolen_share_counts_from_the_floor(clone, target, floor, share):
    assert stolen_share(clone, target, floor) == pytest.approx(share)


def test_nothing_can_be_stolen_from_a_target_at_chance():
    assert math.isnan(stolen_share(0.5, 0.1, 0.1))


def test_estimate_is_students_interval():
    # t(0.975, 2) = 4.3027; the standard deviation of 1, 2, 3 is 1
    found = estimate([1.0, 2.0, 3.0])
    assert found == Estimate(2.0, found.half, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3))
    assert estimate([0.7]) == Estimate(0.7, None, 1)


@pytest.mark.parametrize("seeds", range(2, 40))
def test_intervals_are_scipys_at_any_number_of_seeds(seeds):
    values = [0.0, 1.0] + [0.5] * (seeds - 2)  # squares of their deviations add up to 1/2
    _, high = scipy.stats.t.interval(0.95, seeds - 1, scale=math.sqrt(1 / 2 / (seeds - 1) / seeds))
    assert estimate(values).half == pytest.approx(high, rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_estimate_ignores_order(values, random):
    shuffled = random.sample(values, len(values))
    assert estimate(values) == estimate(shuffled)


# --------------------------------------------------------------------------------------------------- cells


def test_seeds_are_averaged_and_nothing_else(runs):
    records = runs([("none", "dfme", "none", seed, 0.2 * seed) for seed in range(3)])
    (cell,) = cells(records)
    assert cell.n == 3
    assert cell.clone_accuracy.mean == pytest.approx(0.2)
    assert cell.stolen_share is not None
    assert cell.stolen_share.mean == pytest.approx((0 + 0.1 + 0.3) / 3 / 0.887)


def test_defense_seeds_and_copies_of_the_target_count_as_seeds(make_record):
    (cell,) = cells(make_record(spec__defense_seed=seed, stolen__kl=0.6 + seed / 100) for seed in range(2))
    assert cell.n == 2
    (cell,) = cells(make_record(spec__target=f"digits/lenet5:seed={seed}") for seed in (1, 2, 3))
    assert (cell.n, cell.target) == (3, "digits/lenet5")


def test_seeds_of_a_defense_that_draws_nothing_make_no_sample(make_record):
    """Run under more of its seeds, such a defense would have an interval without a width."""
    runs = [make_record(spec__seed=seed, spec__defense_seed=other) for seed in range(2) for other in range(3)]
    (cell,) = cells(runs)
    assert cell.n == 2
    (cell,) = cells(runs[:3])
    assert cell.stolen_share is not None
    assert (cell.n, cell.stolen_share.half) == (1, None)


def test_runs_that_count_as_one_are_warned_about_together(make_record):
    flagged, other = make_record(flags=["odd"]), make_record(spec__defense_seed=1)
    for runs in ([flagged, other], [other, flagged]):
        (cell,) = cells(runs)
        assert (cell.n, cell.flags) == (1, ("odd",))


def test_unfinished_runs_do_not_count(make_record):
    assert cells([make_record(status="failed"), make_record(status="interrupted", spec__seed=1)]) == []


def test_copies_of_a_run_count_once_and_the_newest_wins(make_record):
    old = make_record(stolen__agreement=0.1)
    new = make_record(stolen__agreement=0.2, timing__created_utc="2027-01-01T00:00:00+00:00")
    for records in ([old, new], [new, old], [new, new]):
        (cell,) = cells(records)
        assert cell.agreement == (0.2, None, 1)


def test_other_hyperparameters_are_other_cells_labeled_by_what_differs(runs):
    records = runs(
        [
            ("topk:k=3", "dfme:lr=1,steps=5", "none", 0, 0.5),
            ("topk:k=3", "dfme:lr=2,steps=5", "none", 0, 0.5),
            ("topk:k=3", "dfme:lr=2,steps=5", "averaging:repeats=4", 0, 0.5),
            ("topk:k=3", "maze:lr=1", "none", 0, 0.5),
        ]
    )
    assert [cell.attack for cell in cells(records)] == [
        "dfme:lr=1",
        "dfme:lr=2+averaging",
        "dfme:lr=2",
        "maze",
    ]


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"spec__clone": "resnet18_8x"}, "dualstudent (clone=resnet18_8x)"),
        ({"spec__precision": "bf16"}, "dualstudent (precision=bf16)"),
        (
            {"spec__attack": {"name": "dualstudent", "version": "2", "params": {"lr_student": "0.3"}}},
            "dualstudent:version=2",
        ),
    ],
)
def test_other_circumstances_are_other_cells(make_record, changes, label):
    found = [cell.attack for cell in cells([make_record(), make_record(**changes)])]
    assert len(found) == 2
    assert label in found


def test_defenses_carry_all_parameters_and_versions_where_they_differ(make_record):
    chain = {"name": "topk+rounding", "version": "1+1", "params": {"0.k": 5, "1.decimals": 2}}
    newer = {"name": "noise", "version": "2", "params": {"scale": 1.0}}
    records = [make_record(spec__defense=spec) for spec in ("noise:scale=1", chain, newer)]
    assert [cell.defense for cell in cells(records)] == [
        "noise:scale=1 (version 1)",
        "noise:scale=1.0 (version 2)",
        "topk:k=5+rounding:decimals=2",
    ]
    assert spec_text(records[1].spec.defense) == "topk:k=5+rounding:decimals=2"


def test_names_made_to_collide_stay_apart(make_record):
    tricky = {"name": "dfme+argmax", "version": "1", "params": {}}
    records = [
        make_record(spec__attack="dfme", spec__recovery="argmax", stolen__agreement=0.1),
        make_record(spec__attack=tricky, stolen__agreement=0.9),
    ]
    assert {cell.attack for cell in cells(records)} == {"dfme+argmax", "dfme+argmax #2"}


@pytest.mark.parametrize(
    "changes",
    [{"protocol": "2027.1"}, {"spec__target": "digits/resnet18_8x:seed=0"}, {"spec__budget": 20_000}],
)
def test_protocols_targets_and_budgets_have_tables_of_their_own(make_record, changes):
    scores = frame_of(cells([make_record(), make_record(**changes)]))
    assert scores.groupby(["protocol", "target", "budget"]).ngroups == 2
    assert (scores["n"] == 1).all()


# --------------------------------------------------------------------------------------------- worst cases


def test_worst_case_is_the_largest_mean_not_the_largest_run(runs):
    lucky = [("none", "dfme", "none", 0, 0.9), ("none", "dfme", "none", 1, 0.1)]
    steady = [("none", "maze", "argmax", seed, 0.6) for seed in range(2)]
    worst = worst_cases(cells(runs(lucky + steady)))
    assert worst[(*TABLE, "none")].attack == "maze+argmax"


def test_upper_bounds_are_shown_and_never_ranked(runs):
    records = runs([("none", "dfme", "oracle_clean", 0, 0.9), ("none", "dfme", "none", 0, 0.5)])
    peeking = next(cell for cell in cells(records) if "oracle" in cell.attack)
    assert (peeking.ranked, peeking.note) == (False, UPPER_BOUND)
    assert worst_cases(cells(records))[(*TABLE, "none")].attack == "dfme"


def test_attacks_with_a_pool_are_marked(make_record):
    (cell,) = cells([make_record(spec__pool="patches")])
    assert (cell.ranked, cell.note) == (True, CHANCE_FLOOR)


@pytest.mark.parametrize("data", ["digits", "svhn@2"])
def test_whoever_asks_about_the_targets_own_data_is_never_ranked(make_record, data):
    (cell,) = cells([make_record(spec__target=f"{data}/lenet5", spec__pool=data)])
    assert (cell.ranked, cell.note) == (False, OWN_DATA)
    assert worst_cases([cell]) == {}
    (cell,) = cells([make_record(spec__target=f"{data}_2/lenet5", spec__pool=data)])
    assert (cell.ranked, cell.note) == (True, CHANCE_FLOOR)


def test_target_at_chance_has_no_worst_case(make_record):
    known = cells([make_record(target__accuracy=0.1)])
    assert known[0].stolen_share is None
    assert worst_cases(known) == {}
    assert not frame_of(known)["worst_case"].any()


@given(outcomes, outcomes)
@settings(max_examples=100, deadline=None)
def test_another_attack_never_improves_a_defense(runs, before, after):
    known = shares(runs(before))
    with_more = shares(runs(before) + runs([(d, f"new_{a}", r, s, x) for d, a, r, s, x in after]))
    assert all(with_more[defense] >= share for defense, share in known.items())


@given(outcomes, outcomes)
@settings(max_examples=100, deadline=None)
def test_another_defense_changes_no_other(runs, before, after):
    known = shares(runs(before))
    with_more = shares(runs(before) + runs([(f"new_{d}", a, r, s, x) for d, a, r, s, x in after]))
    assert {defense: with_more[defense] for defense in known} == known


@given(outcomes, st.randoms())
@settings(max_examples=100, deadline=None)
def test_order_of_records_is_irrelevant(runs, outcomes, random):
    records = runs(outcomes)
    shuffled = random.sample(records, len(records))
    assert cells(records) == cells(shuffled)
    assert frame_of(cells(records)).equals(frame_of(cells(shuffled)))


# --------------------------------------------------------------------------------------------------- frame


@given(outcomes)
@settings(max_examples=100, deadline=None)
def test_frame_is_complete_and_marks_each_worst_case_once(runs, outcomes):
    known = cells(runs(outcomes))
    scores = frame_of(known)
    assert len(scores) == scores["defense"].nunique() * scores["attack"].nunique()
    assert (scores["n"] > 0).sum() == len(known)
    assert (scores.groupby("defense")["worst_case"].sum() == 1).all()
    assert scores.loc[scores["n"] == 0, "stolen_share"].isna().all()


def test_missing_cells_never_look_good(runs):
    records = runs(
        [
            ("strong", "dfme", "none", 0, 0.3),
            ("strong", "maze", "none", 0, 0.5),
            ("shy", "dfme", "none", 0, 0.2),
        ]
    )
    scores = frame_of(cells(records))
    assert list(dict.fromkeys(scores["defense"])) == ["strong", "shy"]
    missing = scores[scores["n"] == 0].iloc[0]
    assert (missing["defense"], missing["attack"], missing["note"]) == ("shy", "maze", "not run")
    assert not scores.loc[scores["defense"] == "shy", "complete"].any()


def test_no_records_make_an_empty_frame():
    scores = frame_of([])
    assert scores.empty
    assert "stolen_share" in scores.columns
