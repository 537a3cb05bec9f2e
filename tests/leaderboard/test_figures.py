from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from msbench.leaderboard.board import make_board
from msbench.leaderboard.figures import LOOKS, costs, curves, figures, heat
from msbench.leaderboard.record import CurvePoint
from msbench.leaderboard.texts import FLAGGED, MISSING

NAMES = ["1-digits-lenet5-60000-queries", "1-digits-lenet5-60000-cost", "1-digits-lenet5-60000-heat"]


@pytest.fixture(scope="module")
def board(make_suite, make_runs, make_baseline, make_entry):
    suite = make_suite([make_entry("topk", settings=["topk:k=5", "topk:k=3"]), make_entry("$x_1$", "randomized")])

    def found(setting, column, seed):
        if (setting, column, seed) == ("topk:k=3", "maze", 1):
            return None
        return {"clone": {"topk:k=5": 0.3, "$x_1$": 0.5}.get(setting, 0.7) + seed / 100, "l1": 0.2 * ("k=5" in setting)}

    reached = dict.fromkeys(("dfme", "maze"), (0.7, 0.71, 0.72))
    return make_board(suite, make_runs(suite, found), make_baseline(suite, reached))


def tier(board):
    return next(tier for tier in board.tables[0].tiers if (tier.drop, tier.l1) == (0.01, 0.5))


def test_the_same_board_makes_the_same_bytes(board):
    for style in ("png", "svg"):
        once, again = (list(figures(board, style)) for _ in range(2))
        assert [name for name, _ in once] == NAMES
        assert once == again
    assert all(b"<dc:date>" not in data and ElementTree.fromstring(data) is not None for _, data in once)


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_curves_are_the_boards(board):
    left, right = curves(board.tables[0], tier(board)).axes
    drawn = lines(left)
    assert drawn["maze"] == [[15_000, pytest.approx(0.5)], [60_000, pytest.approx(0.788)]]
    assert set(right.get_legend_handles_labels()[1]) == {"control", "deterministic", "randomized"}


def test_a_band_goes_from_the_lowest_seed_to_the_highest(make_suite, make_runs):
    suite = make_suite()

    def found(setting, column, seed):
        points = [(100, 0.2 + seed / 10), (1000, 0.5 + seed / 20)]
        curve = [CurvePoint(queries=q, clone_accuracy=a, agreement=a, defended_accuracy=1) for q, a in points]
        return {"clone": 0.6, "curve": curve}

    board = make_board(suite, make_runs(suite, found), None)
    left, right = curves(board.tables[0], tier(board)).axes
    assert (len(left.collections), len(right.collections)) == (3, 3)  # attacks; and controls, the only ones placed
    for band in (*left.collections, *right.collections):
        corners = {(round(x), round(y, 6)) for x, y in band.get_paths()[0].vertices}
        assert corners == {(100, 0.2), (100, 0.4), (1000, 0.5), (1000, 0.6)}
        assert band.get_alpha() > 0


def flag(board, *settings):
    """The board's table, with something flagged of these settings."""
    (table,) = board.tables
    rows = (replace(row, flags=("odd",)) if row.setting in settings else row for row in table.rows)
    return replace(table, rows=tuple(rows))


def test_what_is_flagged_is_marked_in_every_figure(board):
    table = flag(board, "topk:k=5", "topk:k=3")
    _, right = curves(table, tier(board)).axes
    dashed = [line.get_xydata()[-1, 1] for line in right.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([table.rows[3].scores[0].curve[-1][1]])
    assert right.get_title().endswith(f"(dashed: flagged {FLAGGED})")
    for axes, cost in zip(costs(table).axes, (0.0, 0.2), strict=True):
        (rings,) = axes.collections
        assert rings.get_offsets().tolist() == [pytest.approx([cost, 1 - (0.31 - 0.1) / 0.887])]
        assert f"flagged {FLAGGED}" in axes.get_legend_handles_labels()[1]
        assert f"topk:k=5 {FLAGGED}" in {text.get_text() for text in axes.texts}
    names = [label.get_text() for label in heat(table).axes[0].get_yticklabels()]
    assert names[-3:] == [f"topk:k=5 {FLAGGED}", f"topk:k=3 {FLAGGED}", "$x_1$"]
    assert f"{FLAGGED}: flagged" in heat(table).get_supxlabel()


def test_where_nothing_is_flagged_no_figure_says_so(board):
    (table,) = board.tables
    _, right = curves(table, tier(board)).axes
    assert FLAGGED not in right.get_title()
    assert not any(axes.collections for axes in costs(table).axes)


def test_every_complete_setting_is_drawn_at_what_it_costs(board):
    table = board.tables[0]
    left, right = costs(table).axes
    points = [line.get_xydata()[0].tolist() for line in right.lines if line.get_linestyle() == "None"]
    assert len(points) == sum(row.complete for row in table.rows) == 5
    best = (0.31 - 0.1) / 0.887
    assert [at for at in points if at[0] > 0] == [pytest.approx([0.2, 1 - best])]
    assert {text.get_text() for text in right.texts} == {"$x_1$", "topk:k=5"}
    assert {text.get_text() for text in left.texts} == {"topk:k=5"}


def test_a_closed_table_has_no_front(make_suite, make_runs):
    suite = make_suite()
    (table,) = make_board(suite, make_runs(suite, lambda *_: 0.5), None).tables
    assert "gate closed" in costs(table).axes[0].get_title()
    assert not costs(table).axes[0].texts


def test_the_heat_map_says_what_is_missing(board):
    axes = heat(board.tables[0]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "$x_1$"
    assert len(axes.texts) == 6 * 3
    image = axes.images[0].get_array()
    assert image[3].tolist() == pytest.approx([(0.31 - 0.1) / 0.887] * 3)
    texts = np.reshape([text.get_text() for text in axes.texts], (6, 3)).tolist()
    assert texts[3] == ["0.24"] * 3
    assert texts[4] == ["0.69", "0.69 (n=2)", "0.69"]
    assert f"{MISSING}: not run, or without a share" in heat(board.tables[0]).get_supxlabel()


def test_the_heat_map_marks_all_that_tie_and_nobody_where_nothing_was_stolen(make_suite, make_runs, make_entry):
    suite = make_suite([make_entry("tied"), make_entry("safe")])
    reached = {"tied": {"dfme + argmax": 0.3}, "safe": dict.fromkeys(("dfme", "maze", "dfme + argmax"), 0.1)}
    records = make_runs(suite, lambda setting, column, seed: reached.get(setting, {}).get(column, 0.5))
    weights = [text.get_weight() for text in heat(make_board(suite, records, None).tables[0]).axes[0].texts]
    assert weights == 3 * 3 * ["bold"] + ["bold", "bold", "normal"] + 3 * ["normal"]


def test_an_empty_board_has_figures(make_suite):
    board = make_board(make_suite(), [], None)
    assert all(len(data) > 1000 for _, data in figures(board, "svg"))


def test_families_differ_without_colors():
    assert len({marker for _, marker in LOOKS.values()}) == len({color for color, _ in LOOKS.values()}) == len(LOOKS)


def test_names_begin_no_formula(board):
    (svg,) = [data.decode() for name, data in figures(board, "svg") if name.endswith("heat")]
    assert "<!-- $x_1$ -->" in svg
