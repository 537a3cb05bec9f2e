"""What was submitted to a board stands in every report of it, the same words everywhere."""

import json

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.leaderboard import suites
from msbench.leaderboard.board_check import check_board, runs_of
from msbench.leaderboard.board_entries import board_of
from msbench.leaderboard.entries import AttackEntry, TableColumns, alone, read_submission, submissions
from msbench.leaderboard.store import Store
from msbench.leaderboard.texts import escape_markdown

from .tiny_board import ENTRY, column, defense, fill, record_of, suite, write_entry, write_suites

BLEND = defense("blend", "blend:share=0.1", "blend:share=0.9")
RESULTS = (
    "crowbar steals 0.567 of none (digits/lenet5, 20,000 queries; published 0.680)",
    "LOWERED: crowbar steals 0.793 of label_only (digits/lenet5, 20,000 queries; published 0.680)",
)


@pytest.fixture
def board(tmp_path, monkeypatch, make_record):
    """A board with a submitted defense and a submitted attack."""
    folder, frozen = tmp_path / "board", suite()
    monkeypatch.setattr(suites, "FOLDER", folder / "suites")
    write_suites(suites.FOLDER, frozen)
    write_entry(folder, BLEND)
    tables = (TableColumns(target="digits/lenet5", budget=20_000, columns=(column("crowbar", batch=64),)),)
    text = ENTRY.replace('name = "blend"', 'name = "crowbar"').replace('defense = "blend"', 'attack = "crowbar"')
    attack = read_submission(write_entry(folder, AttackEntry(name="crowbar", tables=tables), text))
    store = Store(folder / "results")
    fill(store, frozen, make_record)
    fill(store, suite(BLEND), make_record, right=500)
    for info in runs_of(alone(frozen, attack)).values():
        store.save(record_of(make_record, info, right=800 if info.defense.name == "label_only" else 600))
    return folder


def call(command, board, *arguments):
    result = CliRunner().invoke(
        cli, ["leaderboard", command, "--suite", "tiny", "--board", str(board), *map(str, arguments)]
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_submitted_attacks_do_is_in_every_report_as_the_check_has_it(board, tmp_path):
    assert [note for note in check_board(board, "2026.1").notes if "crowbar" in note] == list(RESULTS)
    call("build", board, "--out", tmp_path / "site")
    listed = [f"- {escape_markdown(line)}" for line in RESULTS]
    for text in (
        call("show", board, "--format", "markdown"),
        call("export", board),
        (tmp_path / "site" / "board.md").read_text(),
    ):
        assert text.splitlines()[-2:] == listed
    assert call("show", board).splitlines()[-2:] == [f"- {line}" for line in RESULTS]
    page = (tmp_path / "site" / "index.html").read_text()
    assert "".join(f"<li>{line}" for line in RESULTS) in page
    for text in (call("show", board, "--format", "json"), (tmp_path / "site" / "board.json").read_text()):
        blend, crowbar = json.loads(text)["submitted"]
        assert (blend["name"], blend["kind"], blend["results"]) == ("blend", "defense", [])
        assert (crowbar["name"], crowbar["kind"], tuple(crowbar["results"])) == ("crowbar", "attack", RESULTS)
        assert (blend["authors"], blend["license"]) == (["Ada Lovelace", "Alan Turing"], "MIT")


def test_only_what_was_submitted_to_the_suite_counts(board):
    submitted, records = list(submissions(board / "entries")), Store(board / "results").records
    full = board_of(suite(), records(), submitted)
    assert [each.entry.name for each in full.submitted] == ["blend", "crowbar"]
    assert [each.results for each in full.submitted] == [(), RESULTS]
    assert [entry.name for entry in full.tables[0].defenses] == ["none", "label_only", "blend"]
    other = board_of(suite().model_copy(update={"name": "other"}), records(), submitted)
    assert other.submitted == ()
    assert [entry.name for entry in other.tables[0].defenses] == ["none", "label_only"]


def test_defenses_that_are_added_stand_beside_what_was_submitted(board):
    submitted = list(submissions(board / "entries"))
    mine = board_of(suite(), Store(board / "results").records(), submitted, [defense("mine")])
    assert [entry.name for entry in mine.tables[0].defenses] == ["none", "label_only", "blend", "mine"]
    assert [each.entry.name for each in mine.submitted] == ["blend", "crowbar"]
