"""``msbench regress`` around its runs: verdicts, exit codes, reports."""

import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import yaml
from click.testing import Result
from msbench.benchmark.cli.regress import regress as command
from msbench.benchmark.launchers.base import Due, Launcher, Outcome, Watcher, settled
from msbench.benchmark.launchers.local import LocalLauncher
from msbench.benchmark.regress import Lines, cells_of, run_cells
from msbench.benchmark.suite import load
from msbench.leaderboard.baseline import load_baseline
from msbench.leaderboard.store import Store
from msbench.leaderboard.suites import suite_text

from .conftest import Call, made_up

ROOT = Path(__file__).parents[2]

SUITE = """
title = "tiny"
text = "Two attacks."
[[table]]
target = "digits/lenet5"
budgets = [300]
seeds = [0, 1, 2]
columns = [{ attack = "random_noise" }, { attack = "dfme" }]
defenses = ["none"]
"""


@pytest.fixture
def strength(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replaces the launcher: what each attack reaches, to be changed by the test; others fail, and so does one seed of
    an attack of which ``"ATTACK SEED"`` is among them."""
    reached = {"random_noise": 0.8, "dfme": 0.9}

    def launch(self: LocalLauncher, due: list[Due], watcher: Watcher, stop: Any) -> None:
        for each in due:
            request = each.cell.request
            if request.attack not in reached or f"{request.attack} {request.seed}" in reached:
                watcher.ended(each.cell, Outcome(status="failed", reason="it \x1b[31mbroke"))
                continue
            record = made_up(request)
            accuracy = reached[request.attack] + 0.001 * (request.seed % 3)
            stolen = record.stolen.model_copy(update={"clone_accuracy": accuracy})  # type: ignore[union-attr]
            Store(self.conditions.store).save(record.model_copy(update={"stolen": stolen}))
            watcher.ended(each.cell, Outcome(status="done"))

    monkeypatch.setattr(LocalLauncher, "launch", launch)
    return reached


@pytest.fixture
def regress(call: Call, tmp_path: Path) -> Callable[..., Result]:
    """The command on a tiny suite and a baseline of its own."""
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE)

    def invoke(*args: str) -> Result:
        return call("regress", "--suite", str(suite), "--baseline", str(tmp_path / "baseline.json"), *args)

    return invoke


def test_held_weaker_stronger(regress: Callable[..., Result], strength: dict[str, float], tmp_path: Path) -> None:
    made = regress("--update", "--seed", "0-19")
    assert made.exit_code == 0, made.output
    assert len(load_baseline(str(tmp_path / "baseline.json")).cells) == 2
    held = regress("--seed", "30-32")
    assert held.exit_code == 0, held.output
    strength["dfme"] = 0.85
    weaker = regress("--markdown", "summary.md", "--junit", "junit.xml", "--json")
    assert weaker.exit_code == 3, weaker.output
    told = json.loads(weaker.stdout)
    assert told["not_done"] == {}
    changed = [line for line in told["lines"] if line["verdict"] != "held"]
    assert [(line["cell"][3], line["metric"], line["verdict"]) for line in changed] == [
        ("dfme", "clone_accuracy", "weaker")
    ]
    summary = Path("summary.md").read_text()
    assert f"## Attack strength, suite tiny: 1 of {len(told['lines'])} metrics changed\n" in summary
    assert "| digits/lenet5 300 none dfme | clone_accuracy | 0.8505 … 0.8515 | 0.90" in summary
    report = Xml.parse("junit.xml").getroot()
    counts = {name: report.get(name) for name in ("tests", "failures", "errors")}
    assert counts == {"tests": str(len(told["lines"])), "failures": "1", "errors": "0"}
    assert len(report.findall("testcase/failure")) == 1
    strength["dfme"] = 0.97
    assert regress().exit_code == 3, "suspiciously stronger"
    assert regress("--attack", "random_*").exit_code == 0


def test_an_update_of_one_attack_keeps_what_is_known_of_others(
    regress: Callable[..., Result], strength: dict[str, float], tmp_path: Path
) -> None:
    regress("--update", "--seed", "0-19")
    before = load_baseline(str(tmp_path / "baseline.json"))
    strength["dfme"] = 0.7
    assert regress("--update", "--seed", "0-9", "--attack", "dfme").exit_code == 0
    after = load_baseline(str(tmp_path / "baseline.json"))
    key = ("digits/lenet5", 300, "none")
    assert after.cell(*key, "random_noise", "none") == before.cell(*key, "random_noise", "none")
    assert after.known((*key, "dfme", "none")).clone_accuracy[0] == 0.7


def test_what_cannot_be_compared_is_said_before_anything_is_run(
    regress: Callable[..., Result], strength: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    regress("--update", "--seed", "0-19", "--attack", "dfme")
    monkeypatch.setattr(LocalLauncher, "launch", None)
    refused = regress()
    assert refused.exit_code == 2
    assert "random_noise" in refused.stderr
    assert "make a new one with --update" in refused.stderr


def test_a_baseline_that_could_not_be_written_is_refused_before_anything_is_run(
    regress: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(LocalLauncher, "launch", None)
    few = regress("--update", "--seed", "0-3")
    assert few.exit_code == 2
    assert (
        "has 4, and a baseline needs 5 seeds at least, and twenty to be worth much: give more with --seed" in few.stderr
    )
    path = tmp_path / "baseline.json"
    path.write_text("{}")
    unusable = regress("--update", "--seed", "0-19")
    assert (unusable.exit_code, f"the baseline {path} is not usable" in unusable.stderr) == (2, True)
    path.unlink()
    path.mkdir()
    assert regress("--update", "--seed", "0-19").exit_code == 2


@pytest.mark.parametrize("form", ["toml", "json"])
def test_the_file_of_a_suite_is_no_baseline(call: Call, tmp_path: Path, form: str) -> None:
    file = tmp_path / f"mine.{form}"
    file.write_text(SUITE if form == "toml" else suite_text(load("ci")))
    before = file.read_bytes()
    for more in ((), ("--update", "--seed", "0-19")):
        refused = call("regress", "--suite", str(file), *more)
        assert refused.exit_code == 2
        assert "name one with --baseline" in refused.stderr
    assert file.read_bytes() == before


@pytest.mark.parametrize("strong", [True, False])
def test_a_run_that_failed_is_named_and_never_passes(
    strong: bool, regress: Callable[..., Result], strength: dict[str, float]
) -> None:
    regress("--update", "--seed", "0-19")
    strength["dfme 1"] = 0
    strength["random_noise"] = 0.8 if strong else 0.5
    result = regress("--markdown", "summary.md", "--junit", "junit.xml", "--json", "--store", "kept")
    assert result.exit_code == (1 if strong else 3), "what failed hides no regression of another cell"
    told = json.loads(result.stdout)
    run = "digits/lenet5 300 none dfme seed 1"
    assert told["not_done"] == {run: r"it \x1b[31mbroke"}
    dfme = [line for line in told["lines"] if line["cell"][3] == "dfme"]
    assert {(line["verdict"], line["done"], line["planned"]) for line in dfme} == {("missing", 2, 3)}
    assert f"not done: {run}: it \\x1b[31mbroke\n" in result.stderr
    assert f"their logs lie in {Path('kept', '.logs')}\n" in result.stderr
    summary = Path("summary.md").read_text()
    assert re.search(r"^## .* suite tiny: 1 of 6 runs not done", summary)
    assert f"\n- {run}: it \\\\x1b\\[31mbroke\n" in summary
    assert "| 2 of 3 | missing |" in summary
    report = Xml.parse("junit.xml").getroot()
    (error,) = report.findall("testcase/error")
    assert (report.get("errors"), error.get("message")) == ("1", r"it \x1b[31mbroke")
    assert [case.get("classname") for case in report if case.find("error") is not None] == [run]
    shown = regress()
    assert re.search(r"dfme +clone_accuracy .* 2 of 3 +missing", shown.stdout)


def test_runs_that_failed_all_are_missing(regress: Callable[..., Result], strength: dict[str, float]) -> None:
    regress("--update", "--seed", "0-19")
    del strength["dfme"]
    failed = regress()
    assert failed.exit_code == 1
    assert failed.stderr.count("not done: digits/lenet5 300 none dfme seed") == 3
    assert re.search(r"dfme +clone_accuracy +- .* 0 of 3 +missing", failed.stdout)


def test_no_baseline_of_runs_that_failed(
    regress: Callable[..., Result], strength: dict[str, float], tmp_path: Path
) -> None:
    del strength["dfme"]
    result = regress("--update", "--seed", "0-4")
    assert result.exit_code == 1
    assert "5 of 10 runs are not done: no baseline is written" in result.stderr
    assert not (tmp_path / "baseline.json").exists()


def test_records_from_before_do_not_count(regress: Callable[..., Result], strength: dict[str, float]) -> None:
    regress("--update", "--seed", "0-19")
    regress("--store", "kept")
    strength["dfme"] = 0.5
    assert regress().exit_code == 3, "made anew"
    assert regress("--store", "kept").exit_code == 0, "unless a store is named"


def test_unusable(regress: Callable[..., Result], strength: dict[str, float]) -> None:
    assert regress().exit_code == 2, "there is no baseline yet"


def test_the_action_asks_for_what_there_is() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (script,) = [step["run"] for step in action["runs"]["steps"] if "msbench regress" in step.get("run", "")]
    options = {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"--[a-z]+", script)) <= options
    (step,) = [step for step in action["runs"]["steps"] if step.get("run") == script]
    assert {re.sub(r"\W|inputs", "", value) for value in step["env"].values()} <= set(action["inputs"])


def test_a_run_that_failed_before_is_due_again(tmp_path: Path) -> None:
    cells = cells_of(load("ci"), attacks=["maze"])
    store = Store(tmp_path)
    error = {"type": "OSError", "message": "gone", "traceback": ""}
    nothing = {"status": "failed", "stolen": None, "paid": None, "target": None, "error": error}
    failed = store.save(made_up(cells[0].request, **nothing))
    placed: list[Due] = []

    class Places(Launcher):
        def launch(self, due: Sequence[Due], watcher: Watcher, stop: threading.Event) -> None:
            placed.extend(due)

    runs = run_cells(cells, Places(), tmp_path, Lines(len(cells), print), threading.Event())
    assert [(run.seed, run.done) for run in runs] == [(0, False), (1, False), (2, False)]
    assert [due.cell for due in placed] == cells
    assert [due.stamp for due in placed] == [failed.stat().st_mtime_ns, None, None]
    assert settled(placed[0], store) is None, "its record is no other driver's"
