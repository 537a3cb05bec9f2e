"""Records of real runs are reproduced from the record alone, and edited ones are found."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msbench.benchmark.cli.main import cli
from msbench.benchmark.runner import run
from msbench.benchmark.spec import RunSpec, resolve
from msbench.benchmark.suite import ColumnPlan, defense_entry, freeze_column
from msbench.benchmark.verify import request_of, verify
from msbench.errors import UsageError
from msbench.leaderboard.entries import AttackEntry, TableColumns, resolved_text
from msbench.leaderboard.record import ComponentInfo, SpecInfo, run_id
from msbench.leaderboard.store import Store, load

pytestmark = pytest.mark.usefixtures("brief")

BUDGET = 300
BLEND = Path(__file__).parents[1] / "plugin" / "msbench_example_plugin" / "defense.py"


ENTRY = """\
name = "halve"
title = "Halve"
authors = ["Ada Lovelace"]
date = 2026-11-22
code = "https://example.org"
license = "MIT"
defense = "{defense}"
protocol = "2026.1"
suite = "smoke"
"""


@dataclass
class Stub:
    """As much of a record as says what was run."""

    spec: SpecInfo
    status: str = "done"
    target: None = None

    @property
    def run_id(self) -> str:
        return run_id(self.spec)


@pytest.fixture
def saved(store: Store) -> Callable[..., Path]:
    def make(**changes: object) -> Path:
        asked = {"attack": "random_noise:batch=100", "budget": BUDGET} | changes
        return store.path_of(run(RunSpec(**asked), store=store))  # type: ignore[arg-type]

    return make


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["leaderboard", "verify", *map(str, arguments)], prog_name="msbench")


def test_a_record_is_reproduced_and_an_edited_copy_is_not(saved: Callable[..., Path], tmp_path: Path) -> None:
    path = saved(defense="topk:k=3+noise:scale=0.01", recovery="averaging:repeats=2", defense_seed=7)
    done = call(path)
    assert done.exit_code == 0, done.output
    assert "reproduced: every number is reproduced, bit for bit" in done.stderr
    copy = Path(shutil.copy(path, tmp_path / path.name))
    data = json.loads(copy.read_text())
    data["stolen"]["agreement"] = data["curve"][-1]["agreement"] = 0.0
    copy.write_text(json.dumps(data))
    refused = call(copy)
    assert refused.exit_code == 4
    assert "stolen.agreement: 0 in the record" in refused.stdout
    assert "although versions, threads, rounding and the target's weights are the record's" in refused.stderr


def test_a_record_of_another_s_file_needs_the_file(saved: Callable[..., Path], tmp_path: Path) -> None:
    path = saved(defense=f"{BLEND}:Halve:share=0.2")
    assert "say with --code which folder the file lies in" in call(path).stderr
    done = call(path, "--code", BLEND.parent)
    assert done.exit_code == 0, done.output
    (tmp_path / "defense.py").write_text(BLEND.read_text() + "# changed\n")
    other = call(path, "--code", tmp_path)
    assert other.exit_code == 2
    assert "what is here is not what the record ran: defense is" in other.stderr


def test_an_entry_that_a_record_belongs_to_is_compared_with_its_code(
    saved: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    record = saved(defense=f"{BLEND}:Halve:share=0.2")
    board = tmp_path / "board"
    path = board / "results" / record.relative_to(store.root)
    path.parent.mkdir(parents=True)
    shutil.copy(record, path)
    (board / "entries").mkdir()
    spec = "plugin/defense.py:Halve:share=0.2"
    resolved = defense_entry(f"{BLEND}:Halve:share=0.2")
    settings = (resolved.settings[0].model_copy(update={"spec": spec}),)
    resolved = resolved.model_copy(update={"name": "halve", "settings": settings})
    (board / "entries" / "halve.toml").write_text(ENTRY.format(defense=spec))

    def verified(**changes: object) -> Result:
        text = resolved_text(resolved.model_copy(update=changes))
        (board / "entries" / "halve.json").write_text(text)
        return call(path, "--code", BLEND.parent)

    assert verified().exit_code == 0
    forged = verified(family="deterrent", stochastic=True)
    assert forged.exit_code == 4
    assert forged.stdout.splitlines() == [
        "halve.json: family is 'deterrent', by its code 'deterministic'",
        "halve.json: stochastic is True, by its code False",
    ]
    assert "every number is reproduced" in forged.stderr


def test_an_entry_of_a_module_is_compared_with_it(
    saved: Callable[..., Path], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(BLEND, tmp_path / "half_a_module.py")
    monkeypatch.syspath_prepend(tmp_path)
    spec = "half_a_module:Halve:share=0.2"
    record = saved(defense=spec)
    path = tmp_path / "board" / "results" / record.relative_to(store.root)
    path.parent.mkdir(parents=True)
    shutil.copy(record, path)
    entries = tmp_path / "board" / "entries"
    entries.mkdir()
    (entries / "halve.toml").write_text(ENTRY.format(defense=spec))
    resolved = defense_entry(spec).model_copy(update={"name": "halve"})
    forged = ["halve.json: argmax_preserving is False, by its code True"]
    for changes, lines in (({}, []), ({"argmax_preserving": False}, forged)):
        (entries / "halve.json").write_text(resolved_text(resolved.model_copy(update=changes)))
        done = call(path)
        assert (done.exit_code, done.stdout.splitlines()) == (4 if lines else 0, lines), done.output


def test_an_entry_some_of_whose_code_was_not_run_is_not_compared(
    saved: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    attack, recoveries = "random_noise:batch=100", ("none", "mine.py:Mine")
    record = saved()
    path = tmp_path / "board" / "results" / record.relative_to(store.root)
    path.parent.mkdir(parents=True)
    shutil.copy(record, path)
    asked = RunSpec(target="digits/lenet5", budget=BUDGET)
    plain = freeze_column(asked, ColumnPlan(attack=attack, role="ranked"), "none")
    mine = ComponentInfo(name="mine.py:Mine", version="1+0123abcd", params={})
    columns = (plain, plain.model_copy(update={"recovery": "mine.py:Mine", "resolved_recovery": mine}))
    entries = tmp_path / "board" / "entries"
    entries.mkdir()
    text = ENTRY.replace('defense = "{defense}"', f'attack = "{attack}"\nrecoveries = {json.dumps(recoveries)}')
    (entries / "halve.toml").write_text(text)
    tables = (TableColumns(target="digits/lenet5", budget=BUDGET, columns=columns),)
    (entries / "halve.json").write_text(resolved_text(AttackEntry(name="halve", tables=tables)))
    done = call(path)
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    (entries / "halve.json").write_text("{")
    begun = call(path)
    assert begun.exit_code == 2
    assert "reproduced" not in begun.stderr  # what cannot be read is said before hours are spent


@pytest.mark.parametrize(
    ("defense", "constant", "defense_seeds"),
    [
        ("topk", True, [0, 0]),
        ("mad", True, [0, 0]),
        ("noise", False, [0, 1_000_000]),
        ("noise:per_input=true", True, [0, 0]),
        ("prada", False, [0, 0]),
        ("nasty_teacher", False, [0, 1_000_000]),
        ("topk+noise", False, [0, 1_000_000]),
    ],
)
def test_what_is_paid_for_a_defense_is_compared_by_what_it_does(
    defense: str, constant: bool, defense_seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, asked, judged = Stub(resolve(RunSpec(defense=defense)).info), [], {}
    monkeypatch.setattr("msbench.benchmark.verify._again", lambda request, _: asked.append(request) or record)
    monkeypatch.setattr("msbench.benchmark.verify.judge", lambda *_, **told: judged.update(told))
    verify(record, times=2)  # type: ignore[arg-type]
    assert [request.defense_seed for request in asked] == defense_seeds
    assert judged["constant"] is constant


def test_fresh_seeds_and_those_beside_the_record_tell_how_far_seeds_spread(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved()
    record = load(path)
    asked: list[tuple[int, int]] = []

    def elsewhere(spec: RunSpec, **options: object) -> object:
        asked.append((spec.seed, spec.target_seed))
        same = replace(spec, target_seed=0)  # another copy would have to be trained first
        again = run(same, **options)  # type: ignore[arg-type]
        assert again.stolen is not None and again.target is not None
        other = again.stolen.model_copy(update={"kl": again.stolen.kl + 1e-6 * (1 + len(asked))})
        target = again.target.model_copy(update={"digest": "ab" * 32})
        return again.model_copy(update={"stolen": other, "target": target})

    monkeypatch.setattr("msbench.benchmark.verify.run", elsewhere)
    assert verify(record).outcome == "undecided"
    verdict = verify(record, times=3)
    fresh = [1_000_000, 1_000_001]  # weights are not the record's, so each seed attacks a copy of its own
    assert asked == [(0, 0), (0, 0), *zip(fresh, fresh, strict=True)]
    assert "over 3 runs" in verdict.text


def test_what_cannot_be_run_again_is_a_usage_error(saved: Callable[..., Path]) -> None:
    record = load(saved())
    with pytest.raises(UsageError, match="is interrupted"):
        verify(record.model_copy(update={"status": "interrupted"}))
    target = record.spec.target.model_copy(update={"params": {"sha256": "ab"}})
    with pytest.raises(UsageError, match="checkpoint"):
        request_of(record.model_copy(update={"spec": record.spec.model_copy(update={"target": target})}), None)


@pytest.mark.parametrize(
    "changes", [{"attack": "knockoff"}, {"attack": "true_data"}, {"recovery": "ddae"}, {"defense": "mad"}]
)
def test_what_is_asked_for_again_is_the_same_run(changes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = resolve(RunSpec(**changes))  # type: ignore[arg-type]
    assert resolve(request_of(Stub(plan.info), None)).run_id == plan.run_id  # type: ignore[arg-type]
