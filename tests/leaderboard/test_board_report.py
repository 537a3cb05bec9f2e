import csv
import importlib.util
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from msbench.errors import UsageError
from msbench.leaderboard.board import make_board
from msbench.leaderboard.board_report import (
    grids,
    sheets,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_rich,
    to_text,
)
from msbench.leaderboard.texts import FLAGGED, MISSING, SIGMA, escape_latex, escape_markdown
from rich.console import Console

_spec = importlib.util.spec_from_file_location("board_factory", Path(__file__).with_name("board_factory.py"))
factory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(factory)

ODD = r"a|b<i>*_`[x](y)`_*&%$#{}~^\x"
COLUMNS = ("dfme", "maze", "dfme + argmax")


@pytest.fixture(scope="module")
def board(make_suite, make_runs, make_baseline, make_entry, make_column):
    """Three controls, a sweep with a missing run, a ranked defense that is flagged, and one with an odd name."""
    entries = [
        make_entry("topk", settings=["topk:k=5", "topk:k=3"]),
        make_entry("noise", "randomized", ["noise:scale=1"], stochastic=True),
        make_entry(ODD, "randomized"),
    ]
    columns = [*map(make_column, COLUMNS), make_column("random_labels", role="floor")]
    suite = make_suite(entries, columns)
    strength = {"none": 0.70, "temperature:t=2": 0.70, "label_only": 0.65, "topk:k=5": 0.5, "noise:scale=1": 0.4}

    def found(setting, column, seed):
        if (setting, column, seed) == ("topk:k=3", "maze", 1):
            return None
        clone = 0.2 if column == "random_labels" else strength.get(setting, 0.3) - COLUMNS.index(column) / 30
        flags = ["looks | odd"] if setting == "noise:scale=1" else []
        return {"clone": clone + seed / 70, "l1": 0.123 if setting in strength else 0.6, "flags": flags}

    reached = {"dfme": (0.7, 0.714, 0.729), "maze": (0.667, 0.681, 0.695)}
    return make_board(suite, make_runs(suite, found), make_baseline(suite, reached))


@pytest.fixture(scope="module")
def laid(board):
    return sheets(board)


def printed(renderable, width=400):
    page = io.StringIO()
    Console(file=page, width=width).print(renderable)
    return page.getvalue()


def parsed(text):
    """The tables of a Markdown text, by title: a list of rows, each a dictionary by heading."""
    tables = {}
    for section in re.split(r"^### ", text, flags=re.M)[1:]:
        title, *lines = section.splitlines()
        rows = [
            [re.sub(r"\\(.)", r"\1", part).strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in lines
            if line.startswith("|")
        ]
        head, _, *body = [[part.removeprefix("**").removesuffix("**") for part in row] for row in rows]
        tables[title] = [dict(zip(head, row, strict=True)) for row in body]
    return tables


def numbers(text):
    """The numbers of a cell of text, in order; what is missing has none."""
    return [float(found.replace(",", "")) for found in re.findall(r"-?\d[\d,]*\.?\d*", text)]


def marked(line):
    """A setting's name in a table: with a mark if anything is flagged."""
    return line["setting"] + (f" {FLAGGED}" if line["warnings"] else "")


def known(*values):
    return [float(value) for value in values if value != ""]


# ------------------------------------------------------------------------------------------------ agreement


def test_markdown_and_csv_say_the_same_numbers(laid):
    lines = list(csv.DictReader(io.StringIO(to_csv(laid))))
    tables = parsed(to_markdown(laid))
    cells = next(rows for title, rows in tables.items() if "every setting" in title)
    rankings = [rows for title, rows in tables.items() if "defenses · drop ≤ 1 points" in title]
    assert len(rankings) == 2
    compared = 0
    for line in lines:
        (row,) = [row for row in cells if row["setting"] == marked(line)]
        shown = row[line["attack"] + ("" if line["role"] == "ranked" else " *")]
        assert numbers(shown.partition(" (n=")[0]) == pytest.approx(
            known(line["sigma"], line["sigma_interval"]), abs=0.005001
        )
        assert (f"(n={line['n']})" in shown) == (int(line["n"]) < 3)
        for ranking in rankings:
            for place in ranking:
                if line["placed"] == "True" and place["defense"] == marked(line):
                    compared += 1
                    assert place["rank"] == (line["rank"] or MISSING)
                    assert place["by"] == line["worst_case"]
                    for heading, names, unit, digits in (
                        (f"worst case {SIGMA}", ("worst_sigma", "worst_sigma_interval"), 1, 2),
                        ("accuracy %", ("accuracy",), 100, 1),
                        ("drop", ("drop",), 100, 1),
                        ("L1", ("l1",), 1, 2),
                        ("shifted drop", ("shifted_drop",), 100, 1),
                        ("shifted L1", ("shifted_l1",), 1, 2),
                        ("latency", ("latency",), 1, 2),
                    ):
                        exact = [unit * value for value in known(*(line[name] for name in names))]
                        assert numbers(place[heading]) == pytest.approx(exact, abs=0.5001 * 10**-digits)
    # Controls stand in both rankings: (4 + 3 + 3) cells twice; then three for each of topk's and noise's settings.
    assert compared == 2 * 10 + 2 * 3


def test_attacks_agree_with_json(laid):
    (rows,) = [rows for title, rows in parsed(to_markdown(laid)).items() if "· attacks · drop ≤ 1 points" in title]
    data = json.loads(to_json(laid))
    for row, exact in zip(rows, data["attacks"], strict=True):
        assert row["attack"].removesuffix(" *") == exact["attack"]
        for heading, names, unit, digits in (
            (f"mean {SIGMA}", ("sigma",), 1, 2),
            ("worst case for", ("worst_for",), 1, 0),
            ("queries to half", ("queries_to_half",), 1, 0),
            ("s per 100k", ("seconds",), 1, 1),
            ("clone acc. %", ("clone_accuracy", "clone_accuracy_interval"), 100, 1),
            ("reference %", ("reference", "reference_interval"), 100, 1),
            ("threshold", ("threshold",), 100, 1),
        ):
            expected = [unit * exact[name] for name in names if exact[name] is not None]
            assert numbers(row[heading]) == pytest.approx(expected, abs=0.5001 * 10**-digits), heading
        assert row["gate"] == (exact["gate"] or MISSING)


def test_terminal_text_and_latex_show_the_same_grids(laid):
    terminal, plain, latex = printed(to_rich(laid)), to_text(laid), to_latex(laid)
    assert latex.count(r"\toprule") == len(list(grids(laid)))
    for grid in grids(laid):
        for row, worst in zip(grid.rows, grid.worst, strict=True):
            for shown in (terminal, plain):
                assert any(all(text in line for text in row) for line in shown.splitlines())
            texts = [escape_latex(text) for text in row]
            for i in worst:
                texts[i] = rf"\textbf{{{texts[i]}}}"
            assert " & ".join(texts) + r" \\" in latex


def test_json_is_the_frames(laid):
    data = json.loads(to_json(laid))
    for name in ("tables", "settings", "cells", "attacks"):
        frame = getattr(laid, name)
        again = pd.DataFrame(data[name], columns=frame.columns).astype(frame.dtypes.to_dict())
        pd.testing.assert_frame_equal(again, frame, check_exact=True)
    assert (data["suite"], data["tier"]) == ("tiny", {"drop": 0.01, "l1": 0.5})


# -------------------------------------------------------------------------------------------- what is shown


def test_a_ranking_says_who_is_where_and_why_not(laid):
    deterministic, randomized, *_ = grids(laid)
    assert [row[:2] + row[-1:] for row in deterministic.rows] == [
        ["label_only", MISSING, "control"],
        ["none", MISSING, "control"],
        ["temperature:t=2", MISSING, "control"],
        ["topk:k=5", MISSING, "runs of its sweep are missing"],
    ]
    assert [row[:2] + row[-1:] for row in randomized.rows[3:]] == [
        [f"noise:scale=1 {FLAGGED}", "1", "flagged"],
        [ODD, MISSING, "no setting meets both caps"],
    ]


def test_missing_runs_flags_and_reasons_are_told(laid, board):
    notes = next(grid.notes for grid in grids(laid) if "every setting" in grid.title)
    assert "Missing, of 3 seeds: topk:k=3 under maze (2)" in notes
    assert "Flag: looks | odd (noise:scale=1)" in notes
    assert any(note.startswith("Undefended accuracy 98.7 %, floor 21.4 %") for note in notes)
    assert not any("Nothing is ranked" in note for note in notes)


def test_what_is_flagged_is_marked_in_every_table_that_has_a_number_of_it(laid):
    _, randomized, cells, _ = grids(laid)
    for grid in (randomized, cells):
        names = [row[0] for row in grid.rows]
        assert [name for name in names if name.endswith(FLAGGED)] == [f"noise:scale=1 {FLAGGED}"]
        assert "noise:scale=1" not in names
    assert all(any(note.startswith(f"{FLAGGED} flagged") for note in grid.notes) for grid in list(grids(laid))[::2])
    assert r"noise:scale=1 $\dagger$ & 1 &" in to_latex(laid)


def test_every_cost_that_a_cap_holds_for_is_in_every_format(make_suite, make_runs, make_entry):
    """A placement can be explained: this one lacks one because of the distance on the shifted copy alone."""
    suite = make_suite([make_entry("mine")])
    records = make_runs(suite, lambda setting, *_: {"clone": 0.5, "shifted": {"l1": 0.6} if setting == "mine" else {}})
    narrow, wide = (sheets(make_board(suite, records, None), 0.01, l1) for l1 in (0.5, 1.0))
    (*_, row), *_ = parsed(to_markdown(wide)).values()
    assert (row["defense"], row["L1"], row["shifted L1"]) == ("mine", "0.00", "0.60")
    (line, *_) = [line for line in to_latex(wide).splitlines() if line.startswith("mine & ")]
    assert "& 98.7 & 0.0 & 0.00 & 0.1 & 0.60 &" in line
    for laid, placed in ((narrow, False), (wide, True)):
        (one,) = [each for each in json.loads(to_json(laid))["settings"] if each["setting"] == "mine"]
        assert (one["placed"], one["l1"], one["shifted_l1"]) == (placed, 0.0, pytest.approx(0.6))
        lines = [line for line in csv.DictReader(io.StringIO(to_csv(laid))) if line["setting"] == "mine"]
        assert {(line["placed"], line["shifted_l1"]) for line in lines} == {(str(placed), "0.6")}


@pytest.mark.parametrize(("seeds", "done"), [(2, 2), (2, 1), (5, 5), (5, 4)])
def test_cells_that_lack_seeds_say_how_many_they_have(make_suite, make_runs, seeds, done):
    suite = make_suite(seeds=range(seeds))
    records = make_runs(suite, lambda setting, column, seed: 0.5 if setting == "none" or seed < done else None)
    *_, cells, _ = grids(sheets(make_board(suite, records, None)))
    shown = {row[0]: row[1] for row in cells.rows}
    assert "(n=" not in shown["none"]
    assert shown["label_only"].endswith(f"(n={done})") == (done < seeds)


def test_a_share_that_does_not_exist_is_missing_and_the_legend_says_so(make_suite, make_runs):
    suite = make_suite()
    records = [
        record.model_copy(update={"target": record.target.model_copy(update={"accuracy": 0.1})})
        for record in make_runs(suite, lambda *_: 0.5)
    ]
    _, cells, _ = grids(sheets(make_board(suite, records, None)))
    assert [row[1:] for row in cells.rows] == [[MISSING] * 3] * 3
    assert f"{MISSING}: not run, or without a share, for a target that was attacked is no better" in cells.notes[0]


def test_a_closed_table_says_why(make_suite, make_runs):
    suite = make_suite()
    laid = sheets(make_board(suite, make_runs(suite, lambda *_: 0.5), None))
    assert "Nothing is ranked: dfme: the baseline has no reference for it; maze:" in to_markdown(laid)


def test_every_format_names_all_that_tie_and_nobody_where_nothing_was_stolen(make_suite, make_runs, make_entry):
    suite = make_suite([make_entry("tied"), make_entry("safe")])
    reached = {"tied": {"dfme": 0.5, "maze": 0.5, "dfme + argmax": 0.3}, "safe": dict.fromkeys(COLUMNS, 0.1)}

    def found(setting, column, seed):
        return reached.get(setting, {"dfme": 0.9}).get(column, 0.8)

    laid = sheets(make_board(suite, make_runs(suite, found), None))
    ranking, cells, attacks = grids(laid)
    assert {row[0]: row[3] for row in ranking.rows[3:]} == {"safe": MISSING, "tied": "dfme; maze"}
    named = dict(zip((row[0] for row in cells.rows), cells.worst, strict=True))
    assert named == {"none": (1,), "temperature:t=2": (1,), "label_only": (1,), "tied": (1, 2), "safe": ()}
    assert [row[:3] for row in attacks.rows] == [
        ["dfme", "0.23", "1"],
        ["maze", "0.23", "1"],
        [COLUMNS[2], "0.11", "0"],
    ]
    share = f"{0.4 / 0.887:.2f} ± 0.00"
    assert f"| tied | **{share}** | **{share}** | 0.23 ± 0.00 |" in to_markdown(laid)
    assert "| safe | 0.00 ± 0.00 | 0.00 ± 0.00 | 0.00 ± 0.00 |" in to_markdown(laid)
    shares = r" & \textbf{0.45 $\pm$ 0.00}" * 2
    assert f"tied{shares} & 0.23" in to_latex(laid)
    lines = {(line["setting"], line["attack"]): line for line in csv.DictReader(io.StringIO(to_csv(laid)))}
    data = {(one["setting"], one["attack"]): one["worst"] for one in json.loads(to_json(laid))["cells"]}
    for column in COLUMNS:
        assert (lines["safe", column]["worst_case"], lines["safe", column]["worst"]) == ("", "False")
        assert lines["tied", column]["worst_case"] == "dfme; maze"
        assert lines["tied", column]["worst"] == str(data["tied", column]) == str(column in ("dfme", "maze"))
    settings = {one["setting"]: one["worst_case"] for one in json.loads(to_json(laid))["settings"]}
    assert (settings["tied"], settings["safe"]) == ("dfme; maze", None)


def test_attacks_are_judged_at_the_tier_that_is_asked_for(board):
    for drop, l1, defenses in ((0.01, 0.5, 2), (0.05, 1.0, 3)):
        laid = sheets(board, drop, l1)
        (title,) = [grid.title for grid in grids(laid) if "· attacks ·" in grid.title]
        assert title.endswith(f"drop ≤ {100 * drop:g} points, L1 ≤ {l1:g}")
        entered = laid.settings[laid.settings.placed & (laid.settings.family != "control")]
        assert laid.attacks.worst_for.tolist()[:3] == [defenses, 0, 0]
        found = laid.cells.merge(entered[["table", "setting"]]).groupby("attack", sort=False).sigma.mean()
        assert found.tolist() == pytest.approx(laid.attacks.sigma.tolist()[:3])


def test_another_tier_is_another_ranking(board):
    wide = sheets(board, 0.05, 1.0)
    placed = wide.settings[wide.settings.placed]
    assert placed[placed.defense == ODD]["rank"].tolist() == [1]
    narrow = sheets(board, 0.0, 0.1)
    assert not narrow.settings.placed.any()
    assert set(narrow.settings[narrow.settings.defense == "noise"].why) == {"no setting meets both caps"}


@pytest.mark.parametrize("caps", [(0.03, 0.5), (0.01, 0.3)])
def test_caps_without_a_tier_are_refused(board, caps):
    with pytest.raises(UsageError, match="choose among"):
        sheets(board, *caps)


def test_a_board_without_runs_is_shown_as_missing(make_suite):
    laid = sheets(make_board(make_suite(), [], None))
    assert (laid.cells.n == 0).all()
    assert "Missing, of 3 seeds: none under dfme (0), maze (0)" in to_markdown(laid)
    assert printed(to_rich(laid)) and to_text(laid)
    assert to_latex(laid)
    json.loads(to_json(laid))


def test_what_no_record_knows_is_missing(make_suite, make_runs):
    suite = make_suite(seeds=[0])
    records = make_runs(suite, lambda *_: {"clone": 0.5, "curve": []})
    for record in records:
        record.paid.shifted = None
        record.stolen.queries_to_half = None
    laid = sheets(make_board(suite, records, None))
    (row, *_), *_ = parsed(to_markdown(laid)).values()
    assert (row[f"worst case {SIGMA}"], row["shifted drop"]) == (MISSING, MISSING)
    assert "costs on the shifted copy were not measured" in row.values()
    assert printed(to_rich(laid)) and to_text(laid)
    assert to_latex(laid)


def test_two_tables_of_one_target_and_budget_stay_apart(make_suite, make_runs):
    suite = make_suite()
    twice = suite.model_copy(update={"tables": suite.tables * 2})
    laid = sheets(make_board(twice, make_runs(suite, lambda *_: 0.5), None))
    assert laid.cells.table.tolist() == [1] * 9 + [2] * 9
    assert len(list(csv.DictReader(io.StringIO(to_csv(laid))))) == 18


# ---------------------------------------------------------------------------------------------- submissions


def test_what_submitted_attacks_do_is_in_every_text(laid, board):
    lowered = "LOWERED: storm steals 0.900 of a|b (digits/lenet5, 60,000 queries; published 0.500)"
    storm = replace(factory.SUBMITTED[1], results=(lowered, "storm steals 0.1 of \x1b[31m"))
    entered = replace(laid, board=replace(board, submitted=(factory.SUBMITTED[0], storm)))
    title = "Submitted attacks: no columns yet, but this is what they do to published scores"
    markdown = to_markdown(entered)
    for shown in (printed(to_rich(entered)), to_text(entered)):
        assert shown.endswith(f"\n\n{title}\n- {lowered}\n- storm steals 0.1 of \\x1b[31m\n")
    section = f"### {title}\n\n- {escape_markdown(lowered)}\n- {escape_markdown(storm.results[1])}\n"
    assert markdown.endswith(section) and r"a\|b" in section
    data = json.loads(to_json(entered))["submitted"]
    assert [(each["kind"], each["results"]) for each in data] == [("defense", []), ("attack", list(storm.results))]
    assert "Submitted attacks" not in printed(to_rich(laid)) + to_text(laid) + to_markdown(laid)
    assert json.loads(to_json(laid))["submitted"] == []


def test_json_says_who_submitted_what(laid, board):
    entered = replace(laid, board=replace(board, submitted=factory.SUBMITTED))
    for each, data in zip(factory.SUBMITTED, json.loads(to_json(entered))["submitted"], strict=True):
        kind, results = data.pop("kind"), data.pop("results")
        assert (kind, results) == (each.entry.kind, list(each.results))
        assert data == each.entry.model_dump(mode="json")
        assert data["authors"] == ["Ada Lovelace", "Alan Turing"] and data["paper"]["arxiv"] == "2611.12345"


# ----------------------------------------------------------------------------------------------- third parties


def test_names_mean_themselves_in_markdown(laid):
    text = to_markdown(laid)
    assert escape_markdown(ODD) in text
    assert any(row["setting"] == ODD for rows in parsed(text).values() for row in rows if "setting" in row)


@pytest.mark.parametrize(
    ("name", "seen"), [("[bold]x[/bold]", "[bold]x[/bold]"), ("x\x1b]0;pwned\x07y", "\\x1b]0;pwned\\x07y")]
)
def test_names_mean_themselves_in_the_terminal_and_in_files(make_suite, make_entry, name, seen):
    laid = sheets(make_board(make_suite([make_entry(name)]), [], None))
    for shown in (printed(to_rich(laid)), to_text(laid)):
        assert seen in shown and "\x1b" not in shown
