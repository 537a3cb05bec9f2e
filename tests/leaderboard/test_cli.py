import csv
import io
import json
import re

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.leaderboard.record import schema_text
from msbench.leaderboard.store import Store


@pytest.fixture
def store(tmp_path, make_record):
    store = Store(tmp_path / "runs")
    for attack, kl in (("dfme", 0.61), ("dualstudent", 0.62)):
        for budget in (20_000, 60_000):
            store.save(make_record(spec__attack=attack, spec__budget=budget, curve=[], stolen__kl=kl))
    return store


@pytest.fixture
def call(store):
    def call(*args, env=None):
        return CliRunner().invoke(cli, ["leaderboard", *map(str, args)], env=env)

    return call


def test_show_takes_the_store_from_the_environment(call, store):
    given = call("show", "--store", store.root)
    assert given.exit_code == 0
    assert given.stdout.count("protocol 2026.1") == 2
    assert given.stderr == ""
    assert call("show", env={"MSBENCH_STORE": str(store.root)}).stdout == given.stdout


def test_show_filters(call, store):
    for option, value, rows in [
        ("--budget", "60k", 2),
        ("--budget", "1M", 0),
        ("--target", "digits/*", 4),
        ("--target", "mnist/lenet5", 0),
        ("--protocol", "2026.1", 4),
        ("--protocol", "2020.1", 0),
    ]:
        result = call("show", "--store", store.root, "--format", "json", option, value)
        assert len(json.loads(result.stdout)) == rows
        assert ("no finished runs" in result.stderr) == (rows == 0)
        assert result.exit_code == 0


def test_show_writes_a_file(call, store, tmp_path):
    for style in ("table", "markdown", "csv", "json"):
        output = tmp_path / f"scores.{style}"
        options = ("show", "--store", store.root, "--format", style)
        assert call(*options, "--output", output).stdout == ""
        assert output.read_text(encoding="utf-8") == call(*options).stdout
    lines = csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text()))
    assert {line["attack"] for line in lines} == {"dfme", "dualstudent"}


def test_a_terminal_gets_tables_in_its_width_and_other_formats_as_they_are(call, store):
    screen = {"FORCE_COLOR": "1", "COLUMNS": "40"}  # what rich takes for a terminal
    plain, narrow = call("show", "--store", store.root), call("show", "--store", store.root, env=screen)
    assert "\x1b[1m" in narrow.stdout and "\x1b" not in plain.stdout
    assert max(map(len, re.sub("\x1b[^m]*m", "", narrow.stdout).splitlines())) == 40
    assert max(map(len, plain.stdout.splitlines())) > 40
    written = call("show", "--store", store.root, "--format", "markdown", env=screen)
    assert "\x1b" not in written.stdout


@pytest.mark.filterwarnings("default")
def test_corrupt_file_is_one_line_on_stderr(call, store):
    (store.root / "broken.json").write_text("{\n")
    result = call("show", "--store", store.root, "--format", "json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 4
    assert result.stderr.startswith("warning: skipped ")
    assert result.stderr.count("\n") == 1


def test_empty_store_is_told_and_is_no_failure(call, tmp_path):
    (tmp_path / "empty").mkdir()
    result = call("show", "--store", tmp_path / "empty")
    assert (result.exit_code, result.stdout.strip()) == (0, "")
    assert "no finished runs to show" in result.stderr


@pytest.mark.parametrize("command", ["show", "check"])
def test_missing_store_is_a_usage_error(call, tmp_path, command):
    result = call(command, "--store", tmp_path / "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no folder" in result.stderr


def test_bad_budget_is_a_usage_error(call, store):
    assert call("show", "--store", store.root, "--budget", "many").exit_code == 2


def test_check_passes_a_good_store(call, store):
    result = call("check", "--store", store.root)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "4 records checked, 0 invalid\n"


def test_check_prints_a_line_for_each_problem(call, store):
    bad = store.root / "bad.json"
    bad.write_text("{")
    result = call("check", bad, store.root / "digits")
    assert result.exit_code == 4
    assert result.stdout.startswith(f"{bad}: Invalid JSON")
    assert result.stdout.count("\n") == 1
    assert result.stderr == "5 records checked, 1 invalid\n"


def test_check_insists_on_the_protocol(call, store):
    result = call("check", "--store", store.root, "--protocol", "2027.1")
    assert result.exit_code == 4
    assert result.stdout.count("protocol 2026.1 is not 2027.1") == 4


def test_schema_is_printed(call):
    assert call("schema").stdout == schema_text()


def test_check_takes_a_file_named_twice_once(call, store):
    result = call("check", store.root, store.root / "digits")
    assert (result.exit_code, result.stderr) == (0, "4 records checked, 0 invalid\n")
