"""The pages of documentation: plans that resolve, campaigns that continue, and tables made from records alone."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msbench import targets
from msbench.benchmark import runner
from msbench.benchmark.cli import sweep
from msbench.benchmark.cli.main import cli
from msbench.benchmark.launchers import local
from msbench.benchmark.launchers.base import Conditions, Due, Launcher, Outcome, Watcher, reason_of
from msbench.benchmark.spec import resolve
from msbench.benchmark.studies import pages
from msbench.benchmark.studies.pages import Campaign
from msbench.components import load, names
from msbench.errors import Interrupted, UsageError
from msbench.leaderboard.page_sections import DefenseSection
from msbench.leaderboard.pages import render
from msbench.leaderboard.store import Store

CRASHES = f"{Path(__file__).with_name('misbehaving.py')}:Crashes"
NOISE = "random_noise:batch=40"

# ------------------------------------------------------------------------------------------- the packaged plans


@pytest.fixture(scope="module")
def packaged() -> dict[str, Campaign]:
    """The campaigns of the plans in the package."""
    return {name: Campaign(name) for name in pages.PAGES}


@pytest.mark.parametrize("name", pages.PAGES)
def test_every_run_of_a_packaged_plan_resolves_to_itself(packaged: dict[str, Campaign], name: str) -> None:
    campaign = packaged[name]
    for section in campaign.page.sections:
        for runs in section.runs:
            last = runs.ids[-1]
            assert resolve(campaign.cells[last].request).run_id == last
    assert {plan.run_id for plan in campaign.due()} == set(campaign.cells)


def test_the_pages_leave_no_attack_recovery_or_defense_out(packaged: dict[str, Campaign]) -> None:
    infos = [plan.info for plan in packaged["attacks"].cells.values()]
    assert {info.attack.name for info in infos} >= set(names("attack"))
    assert {info.recovery.name for info in infos} >= set(names("recovery"))
    shown = [plan.info for plan in packaged["defenses"].cells.values()]
    assert {info.defense.name for info in shown} == set(names("defense"))


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_weights_that_a_page_names_are_those_that_come_with_msbench(name: str) -> None:
    weights = Path(targets.__file__).with_name("weights").glob("*/*.json")
    digests = {json.loads(path.read_text(encoding="utf-8"))["digest"][:8] for path in weights}
    named = re.findall(r"\b[0-9a-f]{8}\b", pages.plan_text(name))
    assert named
    assert set(named) <= digests


def test_a_packaged_page_without_records_shows_everything_as_missing(packaged: dict[str, Campaign]) -> None:
    for campaign in packaged.values():
        text = render(campaign.page, {})
        cells = sum(line.count("| missing") for line in text.splitlines())
        assert cells >= sum(len(section.runs) for section in campaign.page.sections)
        assert f"Runs: 0 of {len(campaign.cells)} are done." in text


def test_a_sweep_takes_each_declared_value_once(packaged: dict[str, Campaign]) -> None:
    (sweeps,) = (section for section in packaged["defenses"].page.sections if section.name == "digits-sweeps")
    values = [runs.specs[0].defense.params["k"] for runs in sweeps.runs if runs.specs[0].defense.name == "topk"]
    assert values == list(load("defense", "topk").traits.sweep)  # type: ignore[attr-defined]
    assert {runs.recovery for runs in sweeps.runs} == {"none"}


# ------------------------------------------------------------------------------------------------- small plans

HEAD = """
title = "Page"
text = "About it."
[[section]]
name = "first"
title = "First"
target = "digits/lenet5"
budgets = [300]
seeds = [0, 1, 2]
"""
ATTACKS = f"""{HEAD}
cells = [
  {{ attack = "{NOISE}", published = {{ figure = "50 %", setting = "elsewhere", source = "somebody" }} }},
  {{ attack = "{NOISE}", defense = "noise", seeds = [0, 1, 2, 3], note = "A remark." }},
]
[[section]]
name = "second"
title = "Second"
target = "digits/lenet5"
budgets = [300, 100]
seeds = [0, 5]
cells = [{{ attack = "{NOISE}" }}]
"""
Planned = Callable[..., Campaign]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Makes the campaign of a plan."""

    def make(text: str, name: str = "attacks") -> Campaign:
        monkeypatch.setattr(pages, "plan_text", lambda _: text)
        return Campaign(name)

    return make


def test_a_section_may_name_another_pool(planned: Planned) -> None:
    cells = 'cells = [{ attack = "knockoff" }]'
    (own,), (other,) = (
        [runs.specs[0].pool for section in planned(text).page.sections for runs in section.runs]
        for text in (f"{HEAD}{cells}", f'{HEAD}pool = "mnist"\n{cells}')
    )
    assert own is not None
    assert own.startswith("patches")
    assert other == "mnist"


def test_runs_are_due_by_section_and_then_by_seed_and_once(planned: Planned) -> None:
    due = planned(ATTACKS).due()
    order = [(plan.request.defense, plan.request.budget, plan.request.seed) for plan in due]
    first = [("none", 300, 0), ("noise", 300, 0), ("none", 300, 1), ("noise", 300, 1), ("none", 300, 2)]
    second = [("none", 100, 0), ("none", 300, 5), ("none", 100, 5)]  # 300 queries with seed 0 were due before
    assert order == [*first, ("noise", 300, 2), ("noise", 300, 3), *second]
    assert [plan.run_id for plan in planned(ATTACKS).due(("second",))][1:] == [plan.run_id for plan in due[-3:]]


def test_the_seed_of_a_random_defense_goes_with_the_attack_s(planned: Planned) -> None:
    seeds = {(p.info.defense.name, p.info.seed, p.info.defense_seed) for p in planned(ATTACKS).due(("first",))}
    assert seeds == {*(("none", seed, 0) for seed in range(3)), *(("noise", seed, seed) for seed in range(4))}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds = [0, 1, 2]", "seeds = [0, 0]", "given twice"),
        ("seeds = [0, 1, 2]", "seeds = []", "at least 1"),
        ('setting = "elsewhere", ', "", "setting"),
        ("cells = [", "cell = [", "cells"),
        ('"random_noise:batch=40"', '"random_nois"', "did you mean random_noise"),
        ("title", "= title", "not usable"),
    ],
)
def test_a_plan_that_is_not_usable(planned: Planned, old: str, new: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        planned(ATTACKS.replace(old, new, 1))


# ----------------------------------------------------------------------------------------- campaigns, for real

Study = Callable[..., Result]


@dataclass
class Here(Launcher):
    """Does the runs in this process, which knows of the quick target; processes have tests of their own."""

    conditions: Conditions
    slots: int | None
    threads: int | None
    timeout: float | None

    def launch(self, due: Sequence[Due], watcher: Watcher, stop: threading.Event) -> None:
        where = self.conditions
        for each in due:
            options: Any = {"data_dir": where.data_dir, "device": where.device, "download": where.download}
            try:
                record = runner.run(each.cell.request, store=Store(where.store), stop=stop, **options)
            except Interrupted:
                watcher.ended(each.cell, Outcome(status="interrupted"))
                return
            ended = Outcome(status="failed", reason=reason_of(record)) if record.error else Outcome(status="done")
            watcher.ended(each.cell, ended)


@pytest.fixture
def study(planned: Planned, tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Calls ``msbench study`` with a plan, on the CPU and in the test's store; the page is ``page.md``."""
    monkeypatch.setattr(local, "LocalLauncher", Here)

    def call(text: str, *options: str, name: str = "attacks") -> Result:
        planned(text, name)
        places = ["--store", "runs", "--data-dir", "data", "--no-download", "--device", "cpu", "--output", "page.md"]
        return CliRunner().invoke(cli, ["study", name, "-q", *places, *options], prog_name="msbench")

    return call


def bytes_of_records(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "runs").rglob("*.json")}


def row(tmp_path: Path, start: str) -> list[str]:
    """The cells of the page's one row that begins so."""
    (line,) = (line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def one_section(*cells: str, seeds: str = "[0]") -> str:
    return HEAD.replace("[0, 1, 2]", seeds) + f"cells = [{', '.join(cells)}]\n"


def test_a_failure_stops_nothing_and_what_is_done_is_kept(study: Study, tmp_path: Path) -> None:
    plan = one_section(f'{{ attack = "{CRASHES}" }}', f'{{ attack = "{NOISE}" }}')
    result = study(plan)
    assert result.exit_code == 1, result.output
    assert row(tmp_path, "random_noise")[4] == "1"
    assert row(tmp_path, CRASHES)[1] == "failed"
    assert "seed 0 failed with OSError" in (tmp_path / "page.md").read_text()
    assert str(Path.home()) not in (tmp_path / "page.md").read_text().replace(CRASHES, "")
    (done,) = (path for path in (tmp_path / "runs").rglob("*.json") if "random_noise" in path.parts)
    before = done.read_bytes()
    assert study(plan).exit_code == 1, "what failed is tried again"
    assert done.read_bytes() == before


def test_an_interrupted_campaign_continues_where_it_was(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: Any
) -> None:
    plan = one_section(f'{{ attack = "{NOISE}" }}', f'{{ attack = "{NOISE}", defense = "topk" }}')

    @contextmanager
    def soon() -> Iterator[Any]:
        yield stop_after(12)  # in the second run: a run of eight steps asks once before and once in each

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "stopping", soon)
        result = study(plan)
    assert result.exit_code == 130
    assert "the same command continues" in result.stderr
    first = bytes_of_records(tmp_path)
    assert sorted(cells[2] for cells in rows_of(tmp_path)) == sorted(["unfinished", rows_of(tmp_path)[0][2]])
    assert study(plan).exit_code == 0
    records = list(Store(tmp_path / "runs").records())
    assert {record.spec.defense.name: record.timing.resumed for record in records} == {"none": 0, "topk": 1}
    kept = [name for name, text in bytes_of_records(tmp_path).items() if first.get(name) == text]
    assert len(kept) == 1, "the finished run was not run again"


def rows_of(tmp_path: Path) -> list[list[str]]:
    lines = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| random_noise")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_nothing_runs_where_nothing_is_missing_or_asked_for(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = one_section(f'{{ attack = "{NOISE}" }}', seeds="[0, 1]")
    assert study(plan).exit_code == 0
    page, records = (tmp_path / "page.md").read_bytes(), bytes_of_records(tmp_path)
    monkeypatch.setattr(Here, "launch", lambda *_: pytest.fail("a run"))
    for options in ([], ["--render-only"]):
        (tmp_path / "page.md").unlink()
        assert study(plan, *options).exit_code == 0
        assert (tmp_path / "page.md").read_bytes() == page
    assert bytes_of_records(tmp_path) == records
    more = plan.replace("[0, 1]", "[0, 1, 2]")
    assert study(more, "--render-only").exit_code == 0
    assert row(tmp_path, "random_noise")[4] == "2 of 3"


def test_a_page_of_defenses_is_made_by_the_same_machinery(study: Study, tmp_path: Path) -> None:
    plan = HEAD.replace("[0, 1, 2]", "[0]") + f'attacks = ["{NOISE}"]\ndefenses = [{{ defense = "topk:k=2" }}]\n'
    assert study(plan, name="defenses").exit_code == 0
    lines = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| topk:k=2")]
    assert len(lines) == 2
    assert lines[0].endswith(f" {NOISE} |")


def test_a_defense_shows_what_its_knob_is_at(packaged: dict[str, Campaign]) -> None:
    section = packaged["defenses"].page.sections[0]
    assert isinstance(section, DefenseSection)
    shown = {row.defense for row in section.rows}
    assert shown >= {"none", "label_only", "mad:epsilon=0.9", "topk:k=3", "noise:per_input=true,scale=0.1"}


def test_a_dry_run_counts_and_creates_nothing(study: Study, tmp_path: Path) -> None:
    result = study(ATTACKS, "--dry-run")
    assert result.exit_code == 0
    assert "10 runs: 0 done, 0 failed, 0 unfinished, 10 missing; 10 to do, at most 2,600 queries" in result.stdout
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "page.md").exists()
    assert "2,600" not in study(ATTACKS, "--dry-run", "--only", "second").stdout


@pytest.mark.parametrize(("options", "told"), [(["--render-only"], "no folder runs"), (["--only", "x"], "section 'x'")])
def test_a_mistyped_name_does_not_cost_the_page(study: Study, tmp_path: Path, options: list[str], told: str) -> None:
    result = study(ATTACKS, *options)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert told in result.stderr
