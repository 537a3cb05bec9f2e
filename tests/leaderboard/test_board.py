import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msbench.errors import UsageError
from msbench.leaderboard.board import NOTHING_TO_STEAL, make_board, worst_share
from msbench.leaderboard.board_runs import command_of
from msbench.leaderboard.record import CurvePoint, Detection, run_id
from msbench.leaderboard.scoring import Estimate, by_mean, ranks, stolen_share

SEEDS = (0, 1, 2)
UNDEFENDED = {"dfme": (0.70, 0.72, 0.71), "maze": (0.50, 0.53, 0.52), "dfme + argmax": (0.60, 0.61, 0.62)}


def undefended(column, seed):
    return UNDEFENDED[column][seed]


@pytest.fixture
def board(make_suite, make_runs, make_baseline, make_entry):
    """A board of three controls and ``topk``, whose runs come out as ``found`` says; the rest as undefended."""

    def build(found=lambda setting, column, seed: undefended(column, seed), entry=None, **keys):
        suite = make_suite([entry or make_entry("topk", settings=["topk:k=5", "topk:k=3"])], **keys)
        reached = {name: UNDEFENDED[name] for name in ("dfme", "maze")}
        return make_board(suite, make_runs(suite, found), make_baseline(suite, reached))

    return build


def undefended_by_setting(setting, column, seed):
    return undefended(column, seed)


def only(board):
    (table,) = board.tables
    return table


def specs_of(suite):
    """Every run that a suite asks for."""
    return [
        table.spec(suite.protocol, *cell, seed)
        for table in suite.tables
        for cell in table.cells()
        for seed in table.seeds
    ]


def row(table, setting):
    return next(row for row in table.rows if row.setting == setting)


def placed(table, name, drop=0.01, l1=0.5):
    tier = next(tier for tier in table.tiers if (tier.drop, tier.l1) == (drop, l1))
    return next(one for one in tier.placed if table.defenses[one.defense].name == name)


# ------------------------------------------------------------------------------------------------- by hand


def test_the_worst_case_is_the_largest_mean_share_over_seeds(board):
    shares = {"dfme": (0.2, 0.4, 0.3), "maze": (0.1, 0.5, 0.6), "dfme + argmax": (0.9, 0.1, 0.1)}

    def found(setting, column, seed):
        return 0.1 + shares[column][seed] * 0.887 if setting == "topk:k=3" else undefended(column, seed)

    table = only(board(found))
    mine = row(table, "topk:k=3")
    assert [score.sigma.mean for score in mine.scores] == pytest.approx([0.3, 0.4, 1.1 / 3])
    assert mine.worst == 1
    # t(0.975, 2) = 4.3027 and the standard deviation of 0.1, 0.5, 0.6 is 0.26458
    assert mine.scores[1].sigma.half == pytest.approx(4.302653 * 0.2645751 / math.sqrt(3))
    assert (table.runs_done, table.runs_planned) == (45, 45)
    assert (table.floor, table.accuracy) == (0.1, pytest.approx(0.987))


def test_chance_is_one_in_as_many_classes_as_there_are(make_suite, make_runs, make_baseline):
    suite = make_suite()
    (table,) = suite.tables
    hundred = suite.model_copy(update={"tables": (table.model_copy(update={"num_classes": 100}),)})
    runs = make_runs(hundred, undefended_by_setting)
    found = only(make_board(hundred, runs, None))
    assert found.floor == 0.01
    assert row(found, "none").scores[0].sigma.mean == pytest.approx((0.71 - 0.01) / (0.987 - 0.01))


def test_what_a_defense_costs_is_the_worst_mean_over_the_columns(board):
    def found(setting, column, seed):
        if setting != "topk:k=3":
            return undefended(column, seed)
        return {
            "clone": 0.5,
            "defended": 0.987 - (0.02 + seed / 100 if column == "maze" else 0.0),
            "l1": 0.3 if column == "dfme" else 0.1,
        }

    table = only(board(found))
    mine = row(table, "topk:k=3")
    assert (mine.accuracy, mine.drop, mine.l1) == pytest.approx((0.957, 0.03, 0.3))
    assert mine.shifted_drop == pytest.approx(0.001)
    assert placed(table, "topk", 0.05, 0.5).row == table.rows.index(mine)
    for drop, l1 in ((0.02, 0.5), (0.05, 0.2)):
        assert placed(table, "topk", drop, l1).row == table.rows.index(row(table, "topk:k=5"))


def test_caps_hold_up_to_rounding(board):
    def found(setting, column, seed):
        share = undefended(column, seed)
        return {"clone": share - 0.2, "defended": 0.977} if "topk" in setting else share

    assert 0.987 - 0.977 > 0.01
    table = only(board(found))
    assert placed(table, "topk").rank == 1
    assert placed(table, "topk", 0.0, 1.0).why == "no setting meets both caps"


@pytest.mark.parametrize("cost", [{"undefended": 0.941, "defended": 0.92}, {"l1": 0.6}])
def test_caps_hold_on_the_shifted_copy_as_well(board, cost):
    def found(setting, column, seed):
        return undefended(column, seed) if "topk" not in setting else {"clone": 0.5, "shifted": cost}

    table = only(board(found))
    assert placed(table, "topk").why == "no setting meets both caps"
    assert placed(table, "topk", 0.05, 1.0).rank == 1


@pytest.mark.parametrize("setting", ["topk:k=3", "topk:k=5"])
@pytest.mark.parametrize("column", ["dfme", "maze"])
def test_a_share_that_nobody_knows_is_no_good_one(make_suite, make_runs, make_baseline, make_entry, setting, column):
    suite = make_suite([make_entry("topk", settings=["topk:k=5", "topk:k=3"])])
    asked = specs_of(suite)
    runs = make_runs(suite, lambda setting, column, seed: 0.3 if "topk" in setting else undefended(column, seed))
    (at,) = [
        i
        for i, (spec, record) in enumerate(zip(asked, runs, strict=True))
        if (spec, record.spec.seed) == (record.spec, 2)
        and spec.defense == make_entry(setting).settings[0].resolved
        and (spec.attack.name, spec.recovery.name) == (column, "none")
    ]
    poor = runs[at].target.model_copy(update={"accuracy": 0.1, "digest": "cd" * 32})
    runs[at] = runs[at].model_copy(update={"target": poor})
    table = only(make_board(suite, runs, make_baseline(suite, {name: UNDEFENDED[name] for name in ("dfme", "maze")})))
    mine = row(table, setting)
    assert mine.complete
    assert worst_share(mine) is None
    assert not table.blockers
    for tier in table.tiers:
        one = placed(table, "topk", tier.drop, tier.l1)
        assert one.rank is None
        assert one.why in (NOTHING_TO_STEAL, "no setting meets both caps")
    assert placed(table, "topk", 0.05, 1.0).why == NOTHING_TO_STEAL


def test_nothing_is_ranked_where_a_control_s_share_is_unknown(make_suite, make_runs, make_baseline, make_entry):
    suite = make_suite([make_entry("topk", settings=["topk:k=3"])])
    runs = make_runs(suite, lambda setting, column, seed: 0.3 if "topk" in setting else undefended(column, seed))
    poor = runs[0].target.model_copy(update={"accuracy": 0.1, "digest": "cd" * 32})
    assert runs[0].spec.defense.name == "none"
    runs[0] = runs[0].model_copy(update={"target": poor})
    table = only(make_board(suite, runs, make_baseline(suite, {name: UNDEFENDED[name] for name in ("dfme", "maze")})))
    assert table.blockers == (f"the row none: {NOTHING_TO_STEAL}",)
    assert all(one.rank is None for tier in table.tiers for one in tier.placed)


@pytest.mark.parametrize("old", [{0, 1, 2}, {1}], ids=["all", "one"])
def test_a_cost_that_was_not_measured_is_within_no_cap(make_suite, make_runs, make_baseline, make_entry, old):
    suite = make_suite([make_entry("topk", settings=["topk:k=3"])])
    records = make_runs(suite, lambda setting, column, seed: undefended(column, seed) - 0.2 * ("topk" in setting))
    for record in records:
        if record.spec.defense.name == "topk" and record.spec.seed in old:
            record.paid.shifted = None
    baseline = make_baseline(suite, {name: UNDEFENDED[name] for name in ("dfme", "maze")})
    table = only(make_board(suite, records, baseline))
    assert (row(table, "topk:k=3").shifted_drop, row(table, "topk:k=3").shifted_l1) == (None, None)
    found = {placed(table, "topk", tier.drop, tier.l1) for tier in table.tiers}
    assert {(one.row, one.rank, one.why) for one in found} == {
        (None, None, "costs on the shifted copy were not measured")
    }
    assert placed(table, "none", 0.01, 0.5).row == 0


def test_the_floor_is_what_a_floor_column_reaches(board, make_column):
    columns = [make_column("dfme"), make_column("random_labels", role="floor")]

    def found(setting, column, seed):
        return 0.3 + seed / 10 if column == "random_labels" else 0.5

    table = only(board(found, columns=columns))
    assert table.floor == pytest.approx(0.4)
    assert row(table, "topk:k=3").scores[0].sigma.mean == pytest.approx(0.1 / 0.587)
    assert row(table, "topk:k=3").scores[1] is None
    lacking = only(board(lambda *at: None if at[1:] == ("random_labels", 2) else found(*at), columns=columns))
    assert (lacking.floor, lacking.open) == (0.1, False)
    assert "runs of the floor random_labels are missing" in lacking.blockers


@pytest.mark.parametrize(("refused", "kept"), [(0, 0.1), (45_001, 0.1), (45_000, 0.5)])
def test_a_detector_is_judged_by_the_clone_from_before_it_refused(make_suite, make_runs, make_baseline, refused, kept):
    suite = make_suite([])
    detection = Detection(flagged=refused, refused=refused, first_flagged=60_001 - refused if refused else None)

    def met(record):
        diagnostics = record.diagnostics.model_copy(update={"detection": detection})
        return (
            record.model_copy(update={"diagnostics": diagnostics})
            if record.spec.defense.name == "label_only"
            else record
        )

    runs = make_runs(suite, lambda setting, column, seed: 0.1 if setting == "label_only" else undefended(column, seed))
    reached = {name: UNDEFENDED[name] for name in ("dfme", "maze")}
    table = only(make_board(suite, map(met, runs), make_baseline(suite, reached)))
    (score, *_) = row(table, "label_only").scores
    assert score.clone_accuracy.mean == pytest.approx(kept)
    assert score.agreement.mean == pytest.approx(0.1)
    assert score.sigma.mean == pytest.approx(stolen_share(kept, 0.987, table.floor))


def test_a_row_that_lacks_a_run_is_shown_as_incomplete_and_not_placed(board):
    def found(setting, column, seed):
        if (setting, column, seed) == ("topk:k=3", "maze", 1):
            return None
        return {"topk:k=3": 0.2, "topk:k=5": 0.4}.get(setting, undefended(column, seed))

    table = only(board(found))
    assert not row(table, "topk:k=3").complete
    assert row(table, "topk:k=3").scores[1].n == 2
    assert placed(table, "topk").row == table.rows.index(row(table, "topk:k=5"))
    assert (placed(table, "topk").rank, placed(table, "topk").why) == (None, "runs of its sweep are missing")
    nothing = only(board(lambda *at: None if "topk" in at[0] else undefended(*at[1:])))
    assert row(nothing, "topk:k=3").scores == (None, None, None)
    assert (placed(nothing, "topk").row, placed(nothing, "topk").why) == (None, "runs are missing")


def test_curves_are_means_with_the_seeds_extremes(board):
    def found(setting, column, seed):
        points = [(100, 0.2 + seed / 10), (200 + 100 * (seed == 2), 0.5)]
        curve = [CurvePoint(queries=q, clone_accuracy=a, agreement=a, defended_accuracy=1) for q, a in points]
        return {"clone": 0.5, "curve": curve}

    score = row(only(board(found)), "none").scores[0]
    assert score.curve == ((100, pytest.approx(0.3)),)
    assert score.band == ((0.2, 0.4),)


def test_commands_reproduce_the_worst_case(board, make_entry, make_suite):
    reproduce = row(only(board()), "topk:k=3").reproduce
    assert reproduce == (
        "msbench run --target digits/lenet5 --defense topk:k=3 --attack dfme --recovery none --budget 60000 "
        "--seed 0 --seed 1 --seed 2"
    )
    odd = make_entry("a b", stochastic=True)
    loop = row(only(board(entry=odd)), "a b").reproduce
    assert loop.startswith("for seed in 0 1 2; do msbench run --target digits/lenet5 --defense 'a b' ")
    assert loop.endswith(" --seed $seed --defense-seed $seed; done")
    (table,) = make_suite([odd], copies=True).tables
    column, entry = table.columns[0], table.defenses[-1]
    command = command_of(table, entry, entry.settings, column.attack, [column.recovery, "argmax"], Path("my runs"))
    assert " --recovery none --recovery argmax --budget 60000 --store 'my runs' " in command
    assert command.endswith(" --seed $seed --defense-seed $seed --target-seed $seed; done")


# ------------------------------------------------------------------------------------------- what counts


def test_only_the_runs_that_the_suite_asks_for_count(make_suite, make_runs, make_entry, make_column):
    suite = make_suite([make_entry("noise", "randomized", stochastic=True)], [make_column("dfme", labels="dfme:lr=9")])
    records = make_runs(suite, lambda *_: 0.5)
    others = []
    for record in records:
        for change in (
            {"budget": 20_000},
            {"seed": 7},
            {"defense_seed": record.spec.defense_seed + 1},
            {"clone": "lenet5:norm=batch"},
            {"pool": "mnist"},
            {"precision": "bf16"},
            {"protocol": "2027.1"},
            {"attack": record.spec.attack.model_copy(update={"version": "2"})},
            {
                "attack": record.spec.attack.model_copy(
                    update={"params": {"lr": 9} if not record.spec.attack.params else {}}
                )
            },
            {"target": record.spec.target.model_copy(update={"params": {"seed": 1}})},
        ):
            spec = record.spec.model_copy(update=change)
            others.append(record.model_copy(update={"spec": spec, "run_id": run_id(spec)}))
    board = make_board(suite, records, None)
    assert only(board).runs_done == 12
    assert make_board(suite, others + records, None) == board
    assert only(make_board(suite, others, None)).runs_done == 0


def test_the_newest_finished_record_of_a_run_counts(make_suite, make_runs):
    suite = make_suite()
    records = make_runs(suite, lambda *_: 0.5)
    timing = records[0].timing.model_copy(update={"created_utc": "2027-01-01T00:00:00+00:00"})
    stolen = records[0].stolen.model_copy(update={"clone_accuracy": 0.9})
    newer = records[0].model_copy(update={"timing": timing, "stolen": stolen})
    failed = records[0].model_copy(update={"timing": timing, "status": "failed", "stolen": None})
    for order in ([newer, *records], [*records, newer]):
        assert only(make_board(suite, order, None)).rows[0].scores[0].clone_accuracy.mean == pytest.approx(1.9 / 3)
    assert make_board(suite, [*records, failed], None) == make_board(suite, records, None)


def test_equally_new_records_of_a_run_do_not_depend_on_their_order(make_suite, make_runs):
    suite = make_suite()
    one, other = make_runs(suite, lambda *_: 0.5), make_runs(suite, lambda *_: 0.6)
    assert make_board(suite, one + other, None) == make_board(suite, other + one, None)


def test_entries_join_every_table_and_names_are_unique(make_suite, make_runs, make_entry):
    suite, late = make_suite(), make_entry("late")
    table = only(make_board(suite, make_runs(make_suite([late]), lambda *_: 0.5), None, [late]))
    assert row(table, "late").complete
    with pytest.raises(UsageError, match="more than one defense of digits/lenet5 is called late"):
        make_board(suite, [], None, [late, late])


def test_another_suites_baseline_is_refused(make_suite, make_baseline):
    baseline = make_baseline(make_suite(), {"dfme": (0.7, 0.7), "maze": (0.5, 0.5)})
    with pytest.raises(UsageError, match="protocol 2025"):
        make_board(make_suite(), [], baseline.model_copy(update={"protocol": "2025.1"}))


# -------------------------------------------------------------------------------------- gate and controls


@pytest.mark.parametrize(("shift", "words"), [(-0.2, "weaker than its reference"), (0.2, "suspiciously strong")])
def test_an_attack_off_its_reference_strength_closes_the_table(board, shift, words):
    def found(setting, column, seed):
        return undefended(column, seed) + (shift if (setting, column) == ("none", "maze") else 0)

    table = only(board(found))
    assert [line.holds for line in table.gate] == [True, False]
    assert table.blockers == (f"maze: {words}",)
    assert not any(one.rank for tier in table.tiers for one in tier.placed)
    assert placed(table, "topk").why == "nothing is ranked in this table yet"


def test_the_gate_uses_the_baselines_threshold(board, make_baseline, make_suite):
    line = only(board()).gate[1]
    cell = make_baseline(make_suite(), {"dfme": (0, 1), "maze": UNDEFENDED["maze"]}).cells[1]
    assert line.threshold == cell.threshold(3, 2)
    assert line.reference == cell.reference


@pytest.mark.parametrize("control", ["none", "label_only"])
def test_controls_that_were_not_run_close_the_table(board, control):
    table = only(board(lambda *at: None if at == (control, "maze", 0) else undefended(*at[1:])))
    assert f"runs of the row {control} are missing" in table.blockers
    assert placed(table, "topk").rank is None


def test_nothing_is_ranked_without_a_baseline(make_suite, make_runs, make_entry):
    suite = make_suite([make_entry("topk")])
    table = only(make_board(suite, make_runs(suite, lambda *_: 0.5), None))
    assert table.blockers == tuple(f"{name}: the baseline has no reference for it" for name in ("dfme", "maze"))
    assert not any(one.rank for tier in table.tiers for one in tier.placed)


@pytest.mark.parametrize("preserving", [True, False])
def test_keeping_the_top_class_and_beating_labels_is_flagged(board, make_entry, preserving):
    def found(setting, column, seed):
        return undefended(column, seed) - (0.4 if setting == "sly" else 0.0)

    table = only(board(found, make_entry("sly", argmax_preserving=preserving)))
    assert any("better than label_only" in flag for flag in row(table, "sly").flags) == preserving
    assert not row(table, "none").flags


def test_a_temperature_that_protects_is_flagged(board):
    table = only(board(lambda *at: undefended(*at[1:]) - (0.4 if "temperature" in at[0] else 0)))
    assert [flag.partition(" does")[0] for flag in table.flags] == ["temperature:t=2"]
    assert only(board()).flags == ()


def test_flags_are_collected_once(board):
    table = only(board(lambda *at: {"clone": undefended(*at[1:]), "flags": ["b", "a"]}))
    assert row(table, "topk:k=3").flags == ("a", "b")


def test_different_trainings_of_the_target_are_told(make_suite, make_runs):
    suite = make_suite()
    records = make_runs(suite, lambda *_: 0.5)
    other = records[0].model_copy(update={"target": records[0].target.model_copy(update={"digest": "cd" * 32})})
    table = only(make_board(suite, [other, *records[1:]], None))
    assert len(table.targets) == 2
    assert "trained 2 times" in table.flags[0]


def test_copies_of_the_target_are_expected_and_two_trainings_of_one_are_told(make_suite, make_runs):
    suite = make_suite(copies=True)
    (table,) = suite.tables
    assert {spec.target_seed for spec in specs_of(suite)} == {0, 1, 2}
    alike = [[spec.without_seeds() for spec in specs_of(each)] for each in (suite, make_suite())]
    assert alike[0] == alike[1]
    records = [
        record.model_copy(update={"target": record.target.model_copy(update={"digest": f"{record.spec.seed:064}"})})
        for record in make_runs(suite, lambda *_: 0.5)
    ]
    table = only(make_board(suite, records, None))
    assert (len(table.targets), table.flags) == (3, ())
    other = records[1].model_copy(update={"target": records[1].target.model_copy(update={"digest": "cd" * 32})})
    table = only(make_board(suite, [records[0], other, *records[2:]], None))
    assert [flag for flag in table.flags if "copy 1 of the target was trained 2 times" in flag]


# --------------------------------------------------------------------------------------------------- ranks


def estimates(*intervals):
    return [Estimate((low + high) / 2, (high - low) / 2, 3) for low, high in intervals]


def test_ranks_by_hand():
    assert ranks([]) == []
    assert ranks(estimates((0.1, 0.2), (0.3, 0.4), (0.35, 0.45), (0.5, 0.6))) == [1, 2, 2, 4]
    # What overlaps the best shares its rank; what the best is told apart from does not, whatever lies between.
    assert ranks(estimates((0.0, 0.2), (0.1, 0.4), (0.3, 0.5))) == [1, 1, 2]
    # A wide interval does not get past a better mean.
    assert ranks(estimates((0.0, 0.1), (0.45, 0.55), (0.0, 1.2))) == [1, 2, 2]
    assert ranks([Estimate(0.1, None, 1), Estimate(0.9, None, 1)]) == [1, 1]
    # Of equal means, the one with the narrow interval does not hold the other back.
    equal = estimates((0.39, 0.41), (0.49, 0.51), (0.2, 0.8))
    assert ranks(sorted(equal, key=by_mean)) == ranks(sorted(reversed(equal), key=by_mean)) == [1, 1, 2]


intervals = st.tuples(st.integers(0, 20), st.integers(0, 6)).map(lambda at: Estimate(at[0] / 20, at[1] / 20, 3))


@given(st.lists(intervals, min_size=1, max_size=7), intervals)
def test_one_more_defense_never_swaps_lifts_or_ties_others(others, added):
    before = sorted(others, key=by_mean)
    after = sorted([*before, added], key=by_mean)
    position = next(i for i, one in enumerate(after) if one is added)
    alone, joined = ranks(before), ranks(after)
    del joined[position]
    assert alone == sorted(alone)
    assert all(new >= old for old, new in zip(alone, joined, strict=True))
    for (i, one), (j, other) in combinations(enumerate(before), 2):
        apart = one.mean + one.half + 1e-6 < other.mean - other.half
        assert not apart or (alone[i] < alone[j] and joined[i] < joined[j])


# ---------------------------------------------------------------------------------------------- properties

percent = st.integers(0, 100).map(lambda value: value / 100)
shares = percent | st.floats(0, 1)


def mostly(often, seldom):
    """Values that caps are about, and now and then any."""
    return st.one_of(*[st.sampled_from(often)] * 3, seldom)


losses = mostly([0.0, 0.0, 0.005, 0.01, 0.015, 0.03], st.floats(0, 0.9))
distances = mostly([0.0, 0.1, 0.15, 0.3, 0.7, 1.0], st.floats(0, 2))
costs = st.builds(
    lambda lost, l1, shifted_lost, shifted_l1: {
        "defended": 0.987 - lost,
        "l1": l1,
        "shifted": {"undefended": 0.941, "defended": 0.941 - shifted_lost, "l1": shifted_l1},
    },
    *(losses, distances) * 2,
)
NAMES = ("alpha", "beta", "gamma")
COLUMNS = ("dfme", "maze", "dfme + argmax")


@st.composite
def outcomes(draw):
    """What came of every run of three defenses with two settings each, of which some may be missing, or all of a cell;
    controls come out as undefended."""
    runs = {}
    for setting in (f"{name}:k={k}" for name in NAMES for k in (5, 3)):
        paid, dearer = draw(costs), draw(st.lists(st.sampled_from(COLUMNS), max_size=1))
        for column in COLUMNS:
            cost = draw(costs) if column in dearer else paid
            clone, spread = draw(shares), draw(st.sampled_from([0.0, 0.01, 0.1]) | st.floats(0, 0.5))
            for seed in SEEDS:
                runs[setting, column, seed] = cost | {"clone": min(1.0, clone + spread * seed)}
    cells = sorted({at[:2] for at in runs})
    missing = draw(st.lists(st.sampled_from(list(runs)), max_size=2))
    missing += [(*cell, seed) for cell in draw(st.lists(st.sampled_from(cells), max_size=1)) for seed in SEEDS]
    return runs | dict.fromkeys(missing)


@pytest.fixture(scope="session")
def many(make_suite, make_runs, make_baseline, make_entry, make_column):
    """Suite, records and board of some defenses and columns."""

    def build(found, names=NAMES, columns=COLUMNS):
        families = dict(zip(NAMES, ("deterministic", "deterministic", "randomized"), strict=True))
        entries = [
            make_entry(name, families[name], [f"{name}:k=5", f"{name}:k=3"], stochastic=name == "gamma")
            for name in names
        ]
        suite = make_suite(entries, [make_column(column) for column in columns])
        records = make_runs(suite, lambda *at: found.get(at, undefended(*at[1:])))
        reached = {column: UNDEFENDED[column] for column in columns if "+" not in column}
        return suite, records, make_baseline(suite, reached)

    return build


quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scores(board):
    return {one.setting: (share.mean if (share := worst_share(one)) else None) for one in only(board).rows}


def order(table, names):
    """For each tier, these defenses in the order in which they are listed, and their ranks."""
    listed = {}
    for tier in table.tiers:
        found = [(table.defenses[one.defense].name, one.rank) for one in tier.placed]
        listed[tier.drop, tier.l1] = [at for at in found if at[0] in names]
    return listed


@quick
@given(outcomes())
def test_adding_an_attack_never_raises_a_defenses_score(many, found):
    few = scores(make_board(*many(found, columns=COLUMNS[:2])))
    more = scores(make_board(*many(found)))
    assert all(more[setting] >= share for setting, share in few.items() if share is not None)


@quick
@given(outcomes(), st.sampled_from(NAMES))
def test_adding_a_defense_never_changes_anothers(many, found, added):
    names = [name for name in NAMES if name != added]
    without, joined = (only(make_board(*many(found, names=of))) for of in (names, NAMES))
    assert [one.setting for one in without.rows if added in one.setting] == []
    for one in without.rows:
        other = row(joined, one.setting)
        assert replace(other, defense=one.defense) == one
    for tier, listed in order(without, names).items():
        joined_order = order(joined, names)[tier]
        assert [name for name, _ in joined_order] == [name for name, _ in listed]
        assert all((new or 0) >= (old or 0) for (_, old), (_, new) in zip(listed, joined_order, strict=True))


@quick
@given(outcomes(), st.randoms(use_true_random=False))
def test_order_and_copies_of_records_are_irrelevant(many, found, shuffle):
    suite, records, baseline = many(found)
    again = [*records, *shuffle.sample(records, 10)]
    shuffle.shuffle(again)
    assert make_board(suite, again, baseline) == make_board(suite, records, baseline)


@quick
@given(outcomes(), st.data())
def test_a_missing_run_is_missing_and_no_merit(many, found, data):
    suite, records, baseline = many(found)
    gone = data.draw(st.sampled_from(records))
    before = only(make_board(suite, records, baseline))
    after = only(make_board(suite, [record for record in records if record is not gone], baseline))
    at, lost = next(
        (i, j)
        for i, one in enumerate(before.rows)
        for j, score in enumerate(one.scores)
        if score and gone.run_id in score.run_ids
    )
    assert after.runs_done == before.runs_done - 1
    left = after.rows[at].scores[lost]
    assert (left.n if left else 0) == before.rows[at].scores[lost].n - 1
    assert not after.rows[at].complete
    name = before.defenses[before.rows[at].defense].name
    control = before.defenses[before.rows[at].defense].family == "control"
    assert after.open == (before.open and name not in ("none", "label_only"))
    for old, new in zip(before.tiers, after.tiers, strict=True):
        ranked = {before.defenses[one.defense].name: one.rank for one in old.placed}
        for one in new.placed:
            who = after.defenses[one.defense].name
            if who == name or (control and name != "temperature"):
                assert one.rank is None
            if ranked[who] is None:
                assert one.rank is None
            assert one.row is None or after.rows[one.row].complete


@quick
@given(outcomes())
def test_looser_caps_never_make_a_defense_worse(many, found):
    table = only(make_board(*many(found)))
    for name in NAMES:
        best = {
            (tier.drop, tier.l1): math.inf if one.row is None else worst_share(table.rows[one.row]).mean
            for tier in table.tiers
            for one in tier.placed
            if table.defenses[one.defense].name == name
        }
        for drop, l1 in best:
            assert all(best[other] <= best[drop, l1] for other in best if other[0] >= drop and other[1] >= l1)


@quick
@given(outcomes())
def test_attacks_are_counted_where_the_rankings_name_them(many, found):
    table = only(make_board(*many(found)))
    for tier in table.tiers:
        entered = [one for one in tier.placed if table.defenses[one.defense].family != "control"]
        rows = [table.rows[one.row] for one in entered if one.row is not None]
        named = [name for one in rows for name in table.worst_case(one).split("; ")]
        counts = [named.count(column.label) if rows else None for column in table.columns]
        assert [line.worst_for for line in tier.attacks] == counts
        for line in tier.attacks:
            shares = [one.scores[line.column].sigma.mean for one in rows]
            assert line.sigma == (pytest.approx(math.fsum(shares) / len(shares)) if shares else None)


@quick
@given(outcomes())
def test_ranks_are_of_one_family_and_follow_the_worst_case(many, found):
    table = only(make_board(*many(found)))
    for tier in table.tiers:
        for family in ("deterministic", "randomized"):
            mine = [one for one in tier.placed if table.defenses[one.defense].family == family and one.rank]
            means = [worst_share(table.rows[one.row]).mean for one in mine]
            assert means == sorted(means)
            assert [one.rank for one in mine][:1] in ([], [1])
            for one in mine:
                row_of = table.rows[one.row]
                assert max(row_of.drop, row_of.shifted_drop) <= tier.drop + 1e-9
                assert max(row_of.l1, row_of.shifted_l1) <= tier.l1 + 1e-9
                assert all(each.complete for each in table.rows if each.defense == one.defense)
        assert not any(one.rank for one in tier.placed if table.defenses[one.defense].family == "control")


def test_runs_that_attacked_other_weights_than_the_suite_names_are_counted(make_suite, make_runs):
    suite = make_suite()
    (table,) = suite.tables
    records = make_runs(suite, lambda *_: 0.5)
    digest = records[0].target.digest
    named = suite.model_copy(update={"tables": (table.model_copy(update={"weights": {0: digest}}),)})
    assert only(make_board(named, records, None)).flags == ()
    other = records[0].model_copy(update={"target": records[0].target.model_copy(update={"digest": "cd" * 32})})
    (flag,) = only(make_board(named, [other, *records[1:]], None)).flags
    assert flag.startswith(f"1 of {len(records)} runs attacked other weights than those that come with msbench")
