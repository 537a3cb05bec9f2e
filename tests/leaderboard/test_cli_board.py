import csv
import json

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.leaderboard import baseline, suites
from msbench.leaderboard.store import Store


@pytest.fixture
def call(tmp_path, make_suite, make_runs, make_baseline, make_entry, monkeypatch):
    """``msbench leaderboard`` with a suite ``tiny``, its baseline, and its records in ``runs``."""
    suite = make_suite([make_entry("topk", settings=["topk:k=5", "topk:k=3"])])
    reached = dict.fromkeys(("dfme", "maze"), (0.7, 0.71, 0.72))
    texts = {suites: suite, baseline: make_baseline(suite, reached)}
    for module, content in texts.items():
        folder = tmp_path / module.__name__.rpartition(".")[2]
        folder.mkdir()
        (folder / "tiny.json").write_text(content.model_dump_json())
        monkeypatch.setattr(module, "FOLDER", folder)
    for record in make_runs(suite, lambda setting, _, seed: (0.5 if "topk" in setting else 0.7) + seed / 100):
        Store(tmp_path / "runs").save(record)
    return lambda *args: CliRunner().invoke(cli, ["leaderboard", *map(str, args)])


def test_the_board_of_a_suite_is_shown(call, monkeypatch):
    result = call("show", "--suite", "tiny")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Suite tiny · protocol 2026.1 · 45 of 45 runs" in result.stdout
    assert "Deterministic output defenses · drop ≤ 1 points, L1 ≤ 0.5" in result.stdout
    (placed,) = [line.split() for line in result.stdout.splitlines() if line.split()[:2] == ["topk:k=5", "1"]]
    assert placed[2:5] == ["0.46", "±", "0.03"]
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    assert "\x1b[1m" in call("show", "--suite", "tiny").stdout


def test_another_tier(call):
    result = call("show", "--suite", "tiny", "--drop", "5", "--l1", "1", "--format", "json")
    assert json.loads(result.stdout)["tier"] == {"drop": 0.05, "l1": 1.0}
    assert call("show", "--suite", "tiny", "--drop", "3").exit_code == 2


def test_export_writes_texts(call, tmp_path):
    for style in ("markdown", "csv", "latex", "json"):
        output = tmp_path / f"board.{style}"
        assert call("export", "--suite", "tiny", "--format", style, "--output", output).stdout == ""
        assert output.read_text(encoding="utf-8") == call("export", "--suite", "tiny", "--format", style).stdout
    assert len(list(csv.DictReader((tmp_path / "board.csv").read_text().splitlines()))) == 15


def test_export_writes_figures(call, tmp_path):
    result = call("export", "--suite", "tiny", "--format", "svg", "--output", tmp_path / "figures")
    names = [f"1-digits-lenet5-60000-{what}.svg" for what in ("queries", "cost", "heat")]
    assert result.stdout.split() == [str(tmp_path / "figures" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    assert call("export", "--suite", "tiny", "--format", "svg").exit_code == 2


def test_a_boards_folder_has_results_and_entries(call, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "results")
    result = call("show", "--suite", "tiny", "--board", tmp_path, "--format", "json")
    assert json.loads(result.stdout)["tables"][0]["runs_done"] == 45


def test_options_of_one_kind_of_table_are_refused_for_the_other(call):
    assert call("show", "--suite", "tiny", "--target", "digits/*").exit_code == 2
    assert call("show", "--l1", "0.5").exit_code == 2
    assert call("show", "--suite", "tiniest").exit_code == 2
