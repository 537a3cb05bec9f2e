import csv
import io
import json
import math

import pytest
from msbench.leaderboard.report import (
    MISSING,
    grids,
    report_run,
    to_csv,
    to_json,
    to_markdown,
    to_rich,
    to_text,
    verdict,
)
from msbench.leaderboard.score_rows import score_rows
from msbench.leaderboard.scoring import cells
from rich.cells import cell_len
from rich.console import Console


def printed(renderable, width=100):
    page = io.StringIO()
    Console(file=page, width=width).print(renderable)
    return page.getvalue()


@pytest.fixture
def scores(make_record):
    records = [
        make_record(
            spec__defense=defense,
            spec__attack=attack,
            spec__seed=seed,
            stolen__agreement=agreement + seed / 100,
            stolen__clone_accuracy=agreement,
            flags=["looks odd"] if attack == "maze" else [],
        )
        for defense, attack, agreement, seeds in [
            ("topk:k=3", "dfme", 0.7, 3),
            ("topk:k=3", "maze", 0.8, 2),
            ("label_only", "dfme", 0.6, 1),
        ]
        for seed in range(seeds)
    ]
    return score_rows(cells(records))


def test_table_says_what_was_measured(scores):
    (grid,) = grids(scores)
    assert grid.title == "digits/lenet5 · 60,000 queries · protocol 2026.1 · undefended accuracy 98.7 %"
    assert grid.header[:3] == ["defense", "dfme", "maze"]
    assert [row[:4] for row in grid.rows] == [
        ["topk:k=3", "71.0 ± 2.5", "80.5 ± 6.4 (n=2)", "0.79 ± 0.00 maze"],
        ["label_only", "60.0 (n=1)", MISSING, "≥ 0.56 dfme"],
    ]
    assert [row[4:] for row in grid.rows] == [["98.7", "0.08"]] * 2
    assert grid.worst == [(2,), (1,)]
    assert grid.notes[-1] == "Flag: looks odd (maze against topk:k=3)"


def test_of_many_flagged_cells_a_few_are_named_and_the_rest_counted(make_record):
    records = [make_record(spec__defense=f"topk:k={k}", flags=["looks odd"]) for k in range(1, 8)]
    (grid,) = grids(score_rows(cells(records)))
    named = ", ".join(f"dualstudent against topk:k={k}" for k in range(1, 6))
    assert grid.notes[-1] == f"Flag: looks odd ({named} and 2 more)"


def test_a_long_label_of_an_attack_stands_below_the_table(make_record):
    def run(latent, recovery):
        attack = f"dualstudent:latent={latent},generator_kind={latent * 'x'}{'conv' * 10}"
        return make_record(spec__attack=attack, spec__recovery=recovery, flags=["looks odd"] if latent == 9 else [])

    rows = score_rows(cells([run(9, "none"), run(9, "argmax"), run(10, "none"), make_record(spec__attack="maze")]))
    (grid,) = grids(rows)
    names = ["dualstudent (1)", "dualstudent+argmax (2)", "dualstudent (3)", "maze"]
    labels = [row.attack for row in rows]
    assert grid.header[1:5] == names
    assert [note for note in grid.notes if note.startswith("dual")] == [
        f"{name}: {label}" for name, label in zip(names[:3], labels[:3], strict=True)
    ]
    assert grid.rows[0][5].endswith(f" {names[0]}")
    assert "Flag: looks odd (dualstudent (1) against topk:k=3" in grid.notes[-1]
    assert all(label in to_csv(rows) for label in labels)


def test_paid_side_is_the_worst_of_the_row(make_record):
    first = make_record(paid__defended_accuracy=0.9)
    second = make_record(spec__attack="dfme", paid__l1={"mean": 0.4, "p95": 1.0, "max": 2.0})
    (grid,) = grids(score_rows(cells([first, second])))
    assert grid.rows[0][-2:] == ["90.0", "0.40"]


def test_different_trainings_of_the_target_are_told(make_record):
    other = make_record(spec__seed=1, target__digest="cd" * 32, target__accuracy=0.95)
    (grid,) = grids(score_rows(cells([make_record(), other, make_record(spec__attack="dfme")])))
    assert grid.title.endswith("undefended accuracy 96.8 % to 98.7 %")
    assert "the target was trained 2 times" in grid.notes[-1]


def test_unranked_columns_are_marked(make_record):
    records = [make_record(spec__recovery="oracle_clean"), make_record(spec__pool="patches")]
    (grid,) = grids(score_rows(cells(records)))
    assert {name[-2:].count("*") for name in grid.header[1:3]} == {1, 2}
    assert any(note.startswith("* ") for note in grid.notes)
    assert any(note.startswith("** ") for note in grid.notes)


def test_all_formats_show_the_same_cells(scores):
    (grid,) = grids(scores)
    for shown in (printed(to_rich(scores), width=200), to_text(scores), to_markdown(scores)):
        assert all(text in shown for row in grid.rows for text in row)
        assert all(note in " ".join(shown.split()) for note in grid.notes)
    from_csv = list(csv.DictReader(io.StringIO(to_csv(scores))))
    from_json = json.loads(to_json(scores))
    assert len(from_csv) == len(from_json) == len(scores)
    for line, cell in zip(from_csv, from_json, strict=True):
        assert (line["defense"], line["attack"], int(line["n"])) == (
            cell["defense"],
            cell["attack"],
            cell["n"],
        )
        assert line["agreement"] == ("" if cell["agreement"] is None else repr(cell["agreement"]))


def test_json_has_null_where_there_is_nothing(scores):
    missing = next(cell for cell in json.loads(to_json(scores)) if cell["n"] == 0)
    assert missing["agreement"] is None
    assert not any(isinstance(value, float) and math.isnan(value) for value in missing.values())


@pytest.mark.parametrize("odd", ["a" * 90, "防御", "e\u0301a"], ids=["long", "wide", "combining"])
def test_columns_of_plain_text_are_aligned(make_record, odd):
    records = [make_record(spec__defense=defense) for defense in ("topk:k=3", odd)]
    title, blank, *table, end, _, _, _ = to_text(score_rows(cells(records))).splitlines()
    assert title.startswith("digits/lenet5")
    assert (blank, end) == ("", "")
    assert len(table) == 4  # the heading, the rule, two rows
    assert {cell_len(line) for line in table} == {cell_len(table[0])}
    assert [line.split("  ")[0] for line in table[2:]] == sorted([odd, "topk:k=3"])


def test_tables_of_plain_text_stand_apart(make_record):
    one, other = to_text(score_rows(cells([make_record(), make_record(spec__budget=9)]))).split("\n\ndigits/lenet5 ")
    assert one.startswith("digits/lenet5 · 9 queries")
    assert other.startswith("· 60,000 queries")


def test_markdown_survives_pipes_in_names(make_record):
    text = to_markdown(score_rows(cells([make_record(spec__defense="a|b")])))
    assert r"| a\|b |" in text


def test_empty_frame_makes_empty_reports():
    empty = score_rows([])
    assert (to_text(empty), to_markdown(empty), json.loads(to_json(empty))) == ("", "", [])
    assert to_csv(empty).startswith("protocol,target,budget,defense")
    assert not printed(to_rich(empty)).strip()


def test_verdict_is_one_line(make_record):
    record = make_record(spec__recovery="averaging:repeats=4")
    assert verdict(record) == (
        "dualstudent+averaging:repeats=4 against topk:k=3 at 60,000 queries: agreement 79.1 %, "
        "clone accuracy 78.8 % (target 98.7 %), defended accuracy 98.7 %, mean L1 0.08"
    )
    assert verdict(make_record(status="failed")).endswith("failed: ContractViolation: released NaN")
    interrupted = make_record(status="interrupted", budget__spent=2_000)
    assert verdict(interrupted).endswith("interrupted after 2,000 queries")


def test_report_fits_and_shows_everything(make_record, tmp_path):
    curve = [
        {"queries": 60_000 >> (9 - i), "clone_accuracy": i / 12, "agreement": i / 9, "defended_accuracy": 1.0}
        for i in range(10)
    ]
    text = printed(report_run(make_record(flags=["looks odd"], curve=curve), tmp_path))
    assert all(len(line.rstrip()) <= 100 for line in text.splitlines())
    for expected in (
        "79.1 %",
        "not reached",
        "0.08/0.20/0.50",
        "60,000",
        "flag: looks odd",
        "117",
        "60k",
        "█",
    ):
        assert expected in text
    assert "record: " in text
    assert "\x1b" not in text
    assert "..." not in text


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_unfinished_run_is_reported_without_scores(make_record, status):
    text = printed(report_run(make_record(status=status, target=None, curve=[])))
    assert status in text
    assert "STOLEN" not in text


def test_names_are_no_markup(make_record):
    record = make_record(spec__attack="[bold]x[/bold]")
    assert "[bold]x[/bold]" in printed(report_run(record))
    scores = score_rows(cells([record]))
    assert "[bold]x[/bold]" in printed(to_rich(scores), width=200)
    assert "[bold]x[/bold]" in to_text(scores)


def test_no_name_commands_a_terminal(make_record):
    scores = score_rows(cells([make_record(spec__defense="\x1b]0;pwned\x07y")]))
    for shown in (printed(to_rich(scores), width=200), to_text(scores)):
        assert "\\x1b]0;pwned\\x07y" in shown
        assert "\x1b" not in shown
