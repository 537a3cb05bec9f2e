"""The attacks' own table, by hand; what it agrees with is tested with the board and its reports."""

import pytest
from msbench.leaderboard.board import make_board, worst_share
from msbench.leaderboard.scoring import Estimate


def attacks_at(table, drop=0.01, l1=0.5):
    return next(tier for tier in table.tiers if (tier.drop, tier.l1) == (drop, l1)).attacks


def row(table, setting):
    return next(row for row in table.rows if row.setting == setting)


@pytest.fixture
def table(make_suite, make_runs, make_entry):
    """The table of the controls and ``mine``, which is stolen from as given; the controls lose half of all."""

    def build(**reached):
        suite = make_suite([make_entry("mine")])
        records = make_runs(suite, lambda setting, column, seed: reached[column] if setting == "mine" else 0.5)
        return make_board(suite, records, None).tables[0]

    return build


def test_attacks_are_judged_by_each_defense_s_setting_at_the_tier(make_suite, make_runs, make_entry, make_column):
    """A long sweep weighs no more than a short one, and what meets no cap does not weigh at all."""
    sweeps = {"short": ["short:k=1", "short:k=2"], "long": [f"long:k={k}" for k in range(6)], "costly": []}
    columns = [*map(make_column, ("dfme", "maze")), make_column("random_labels", role="floor")]
    suite = make_suite([make_entry(name, settings=settings) for name, settings in sweeps.items()], columns)
    shares = {"short:k=1": (0.8, 0.6), "short:k=2": (0.4, 0.5), "long:k=5": (0.3, 0.2), "costly": (0.9, 0.9)}

    def found(setting, column, seed):
        if column == "random_labels":
            return 0.1
        share = shares.get(setting, (0.7, 0.1) if setting.startswith("long") else (1.0, 1.0))
        return {
            "clone": 0.1 + 0.887 * share[column == "maze"],
            "l1": 0.3 if setting == "short:k=2" else 0.0,
            "defended": 0.5 if setting == "costly" else 0.987,
        }

    (table,) = make_board(suite, make_runs(suite, found), None).tables
    dfme, maze, labels = attacks_at(table)  # short:k=2 and long:k=5
    assert (dfme.sigma, maze.sigma) == pytest.approx((0.35, 0.35))
    assert (dfme.worst_for, maze.worst_for) == (1, 1)
    assert (labels.sigma, labels.worst_for) == (None, None)
    dfme, maze, _ = attacks_at(table, 0.01, 0.2)  # short:k=1 and long:k=5
    assert (dfme.sigma, maze.sigma) == pytest.approx((0.55, 0.4))
    assert (dfme.worst_for, maze.worst_for) == (2, 0)
    assert {(line.queries_to_half, line.seconds) for line in (dfme, maze)} == {(15_000, 1e5 * 38 / 60_000)}


def test_attacks_that_tie_are_all_the_worst_case(table):
    alike = table(dfme=0.4, maze=0.4 + 1e-13, **{"dfme + argmax": 0.4 - 1e-5})
    mine = row(alike, "mine")
    assert (mine.worst_cases, alike.worst_case(mine)) == ((0, 1), "dfme; maze")
    assert [line.worst_for for line in attacks_at(alike)] == [1, 1, 0]
    assert alike.worst_case(row(alike, "none")) == "dfme; maze; dfme + argmax"


def test_no_attack_is_the_worst_case_where_nothing_was_stolen(table):
    safe = table(dfme=0.1, maze=0.05, **{"dfme + argmax": 0.0})
    mine = row(safe, "mine")
    assert (mine.worst_cases, safe.worst_case(mine), worst_share(mine)) == ((), "", Estimate(0.0, 0.0, 3))
    assert [(line.sigma, line.worst_for) for line in attacks_at(safe)] == [(0.0, 0)] * 3


def test_where_no_defense_is_placed_nothing_is_said_of_attacks(make_suite, make_runs):
    suite = make_suite()
    (table,) = make_board(suite, make_runs(suite, lambda *_: 0.5), None).tables
    assert {(line.sigma, line.worst_for) for tier in table.tiers for line in tier.attacks} == {(None, None)}
