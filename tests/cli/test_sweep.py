"""``msbench sweep`` and ``msbench suite`` around the launcher: what is due, what is said, and exit codes."""

import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from msbench.benchmark.cli.sweep_display import LiveWatcher, Tally
from msbench.benchmark.launchers.base import Due, Outcome, Watcher
from msbench.benchmark.launchers.local import LocalLauncher
from msbench.benchmark.suite import plans
from msbench.benchmark.sweep import look
from msbench.leaderboard.store import Store, record_files, relative_path
from msbench.leaderboard.suites import load_suite
from rich.console import Console

from .conftest import _failed, made_up

SUITE = """
title = "t"
text = "about"
[[table]]
target = "digits/lenet5"
budgets = [300]
seeds = [0, 1]
columns = [{ attack = "dfme" }, { attack = "maze" }]
defenses = ["none", "topk:k=3"]
"""


@pytest.fixture(autouse=True)
def suite(tmp_path: Path) -> Path:
    """A suite of eight runs."""
    (tmp_path / "some.toml").write_text(SUITE)
    return tmp_path / "some.toml"


class Fake:
    """Stands in for the launcher: keeps what it was to place, and has it end as it is told, by attack."""

    def __init__(self) -> None:
        self.placed: list[list[Due]] = []
        self.endings: dict[str, Outcome] = {}
        self.launchers: list[LocalLauncher] = []

    def launch(self, launcher: LocalLauncher, due: Sequence[Due], watcher: Watcher, stop: threading.Event) -> None:
        self.placed.append(list(due))
        self.launchers.append(launcher)
        store = Store(launcher.conditions.store)
        for run in due:
            watcher.started(run.cell, 0)
            outcome = self.endings.get(run.cell.request.attack, Outcome(status="done"))
            if outcome.status in ("done", "failed"):
                error = _failed(RuntimeError(outcome.reason)) if outcome.status == "failed" else {}
                store.save(made_up(run.cell.request, **error))
            watcher.ended(run.cell, outcome)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Replaces the launcher."""
    found = Fake()
    monkeypatch.setattr(LocalLauncher, "launch", lambda *arguments: found.launch(*arguments))
    return found


def test_a_sweep_places_what_is_missing_and_the_same_command_nothing_more(call, fake: Fake) -> None:
    result = call("sweep", "some.toml", "--slots", "3", "--threads", "2", "--timeout", "9", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert [run.cell.request.seed for run in fake.placed[0]] == [0] * 4 + [1] * 4
    (launcher,) = fake.launchers
    assert (launcher.slots, launcher.threads, launcher.timeout, launcher.conditions.device) == (3, 2, 9, "cpu")
    assert "8 of 8 runs done" in result.stderr
    again = call("sweep", "some.toml")
    assert (again.exit_code, len(fake.placed)) == (0, 1)
    assert again.stderr == "8 of 8 runs done\n"


def test_failures_are_named_left_alone_and_retried_when_asked_for(call, fake: Fake) -> None:
    fake.endings["maze"] = Outcome(status="failed", reason="it broke")
    result = call("sweep", "some.toml", "--seed", "0")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert all("maze" in line and line.endswith("failed: it broke") for line in errors)

    again = call("sweep", "some.toml", "--only-missing")
    assert {run.cell.request.seed for run in fake.placed[1]} == {1}
    assert again.exit_code == 1
    assert again.stderr.count("failed before: RuntimeError: it broke") == 2
    assert "--retry-failed runs them again" in again.stderr

    fake.endings.clear()
    assert call("sweep", "some.toml", "--retry-failed").exit_code == 0
    assert {run.cell.request.attack for run in fake.placed[2]} == {"maze"}
    assert len(fake.placed[2]) == 4


@pytest.mark.filterwarnings("always")
def test_a_run_in_whose_place_another_s_record_stands_is_due(call, fake: Fake, tmp_path: Path) -> None:
    call("sweep", "some.toml")
    first, second, *_ = fake.placed[0]
    store = Store(tmp_path / "runs")
    places = [store.root / relative_path(run.cell.info) for run in (first, second)]
    places[1].write_text(places[0].read_text())
    again = call("sweep", "some.toml")
    assert [run.cell.run_id for run in fake.placed[1]] == [second.cell.run_id]
    assert f"holds run {first.cell.run_id}, but is named after {second.cell.run_id}" in again.stderr
    assert store.get(second.cell.info) is not None


def test_a_failed_copy_elsewhere_in_the_store_makes_no_run_due(call, fake: Fake, tmp_path: Path) -> None:
    call("sweep", "some.toml")
    first, *_ = fake.placed[0]
    store = Store(tmp_path / "runs")
    copies = Store(tmp_path / "runs" / "zz")
    copies.save(made_up(first.cell.request, **_failed(RuntimeError("it broke"))))
    assert list(record_files(store.root))[-1].is_relative_to(copies.root)
    assert [each.state for each in look([first.cell], store)] == ["done"]
    assert call("sweep", "some.toml", "--retry-failed").stderr == "8 of 8 runs done\n"


def test_runs_that_could_not_begin_and_a_stop_have_their_own_exit_codes(call, fake: Fake) -> None:
    fake.endings["maze"] = Outcome(status="refused", reason="no files")
    result = call("sweep", "some.toml")
    assert result.exit_code == 2
    assert "could not begin: no files" in result.stderr
    fake.endings["maze"] = Outcome(status="interrupted")
    result = call("sweep", "some.toml")
    assert result.exit_code == 130
    assert "4 of 8 runs done, 4 left; states are saved; the same command continues" in result.stderr


def test_a_dry_run_counts_costs_and_creates_nothing(call, fake: Fake, tmp_path: Path) -> None:
    text = call("sweep", "some.toml", "--dry-run").stdout
    assert "8 runs: 0 done, 0 failed, 0 unfinished, 8 missing; 8 to do, at most 2,400 queries" in text
    assert text.endswith("\nno estimate of the time: nothing alike is done yet\n")
    assert not (tmp_path / "runs").exists()
    call("sweep", "some.toml", "--attack", "dfme", "--seed", "0")
    text = call("sweep", "some.toml", "--dry-run").stdout
    assert "about 0:00:02 of computing" in text and "and 4 runs of which none is like one that is done" in text
    assert "no estimate" not in text
    text = call("sweep", "some.toml", "--attack", "dfme", "--seed", "0", "--dry-run").stdout
    assert text.endswith("; 0 to do, at most 0 queries\n")
    plan = json.loads(call("sweep", "some.toml", "--dry-run", "--json").stdout)
    assert plan["states"] == {"done": 2, "missing": 6}
    assert (plan["due"], plan["queries"]) == (6, 1800)
    # made-up records say one second; of maze there is none
    assert (plan["seconds"], plan["runs_of_unknown_seconds"]) == (2.0, 4)
    assert len(fake.placed) == 1


def test_json_is_all_that_stdout_holds(call, fake: Fake) -> None:
    result = call("sweep", "some.toml", "--json", "-q", "--defense", "topk:k=3")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["spec"]["seed"] for record in records] == [0, 0, 1, 1]
    assert result.stderr == "4 of 4 runs done\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["smok"], "did you mean smoke"),
        (["none.toml"], "none.toml"),
        (["some.toml", "--defense", "zz*"], "unknown defense"),
        (["some.toml", "--attack", "knockoff"], "the suite has no other"),
        (["some.toml", "--seed", "7"], "unknown seed"),
        (
            ["smoke", "--attack", "random_labels", "--defense", "topk"],
            "suite smoke has no run of random_labels, topk: it holds each, but they never meet",
        ),
        (["many-classes"], "--folder DIR"),
    ],
)
def test_unusable_arguments(refused, fake: Fake, arguments: list[str], told: str) -> None:
    assert told in refused("sweep", *arguments)
    assert fake.placed == []


def test_what_takes_no_folder_names_a_way_to_give_one(refused, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for command in (("regress",), ("leaderboard", "show"), ("leaderboard", "build")):
        told = refused(*command, "--suite", "many-classes")
        assert "every command takes a suite of your own, FILE.toml, with its path in place of {folder}" in told


def test_the_live_table_shows_what_runs_and_what_is_left(call, fake: Fake) -> None:
    call("sweep", "some.toml", "-q")
    runs = fake.placed[0]
    tally = Tally([], runs)
    watcher = LiveWatcher(tally)
    watcher.started(runs[0].cell, 1)
    watcher.phase(runs[0].cell, "attacking")
    watcher.progress(runs[0].cell, 120)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(watcher.picture())
    text = console.export_text()
    assert runs[0].cell.run_id in text and "attacking" in text and "120" in text
    assert "1 running, 7 waiting" in text
    watcher.ended(runs[0].cell, Outcome(status="done"))
    console.print(watcher.picture())
    assert "0 running, 7 waiting" in console.export_text()


def test_suites_are_listed_and_shown(call) -> None:
    listed = {row["name"]: row for row in json.loads(call("list", "suites", "--json").stdout)}
    for name in ("ci", "smoke", "paper"):
        assert listed[name]["runs"] == len(plans(load_suite(name)))
    assert listed["many-classes"]["runs"] is None
    assert "smoke" in call("suite", "list").stdout
    text = call("suite", "show", "some.toml").stdout
    assert "digits/lenet5, 300 queries, seeds 0, 1" in text
    assert "topk:k=3" in text
    assert json.loads(call("suite", "show", "some.toml", "--json").stdout)["name"] == "some"
