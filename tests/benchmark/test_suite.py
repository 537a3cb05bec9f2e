"""Suites: what is written resolves to what is frozen, in the order due, and upper bounds are never ranked."""

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msbench.benchmark import suite as module
from msbench.benchmark.cli.main import cli
from msbench.benchmark.spec import Cell, RunSpec, resolve
from msbench.benchmark.submission import _resolve
from msbench.benchmark.suite import check, defense_entry, freeze, packaged, plans, read_plan
from msbench.benchmark.sweep import choose, due, estimate, look
from msbench.components import names, origin
from msbench.errors import BadParameter, UnknownName, UsageError
from msbench.leaderboard import suites
from msbench.leaderboard.board_runs import command_of
from msbench.leaderboard.entries import AttackEntry
from msbench.leaderboard.record import run_id
from msbench.leaderboard.store import Store
from msbench.leaderboard.suites import FrozenSuite, load_suite, suite_text

HEAD = 'title = "t"\ntext = ""\n[[table]]\ntarget = "digits/lenet5"\nbudgets = [200]\nseeds = [0, 4]\n'
LINE = 'columns = [{ attack = "dualstudent" }]\ndefenses = ["none"]\n'
MINE = """
from dataclasses import dataclass
from typing import ClassVar
from msbench import Defense, Traits, param

@dataclass(kw_only=True)
class Mine(Defense):
    \"\"\"Mixes.\"\"\"
    share: float = param(0.5, "of something")
    traits: ClassVar[Traits] = Traits(argmax_preserving=True, stochastic=True, knob="share", sweep=(0.1, 0.9))

    def release(self, probs, images):
        return probs
"""


@pytest.fixture
def written(tmp_path: Path):
    """Writes a suite and freezes it."""

    def write(text: str) -> FrozenSuite:
        (tmp_path / "mine.toml").write_text(text)
        return freeze(str(tmp_path / "mine.toml"))

    return write


def asked(cells: list[Cell]) -> list[tuple[str, str, str, int, int]]:
    return [(r.defense, r.attack, r.recovery, r.seed, r.defense_seed) for r in (cell.request for cell in cells)]


# ------------------------------------------------------------------------------------------------- as packaged


@pytest.mark.parametrize("name", packaged())
def test_every_packaged_suite_can_be_read(name: str) -> None:
    assert read_plan(name).title


@pytest.mark.parametrize("name", suites.names())
def test_the_command_that_a_board_prints_makes_the_suites_runs(name: str) -> None:
    suite = load_suite(name)
    for table in suite.tables:
        column = next(column for column in table.columns if column.role == "ranked")
        entry = table.defenses[0]
        setting = entry.settings[0]
        command = command_of(table, entry, [setting], column.attack, [column.recovery])
        options = dict(pair for pair in pairwise(shlex.split(command)) if pair[0].startswith("--"))
        first = table.seeds[0]
        seeds = {"seed": first, "target_seed": first if table.copies else 0}
        asked: dict[str, Any] = {key: options.get(f"--{key}") for key in ("target", "defense", "attack", "recovery")}
        plan = resolve(RunSpec(**asked, clone=options.get("--clone"), budget=int(options["--budget"]), **seeds))
        assert plan.run_id == run_id(table.spec(suite.protocol, column, entry, setting, first))


def test_a_submitted_attack_trains_the_clone_that_the_suite_asks_for() -> None:
    suite = load_suite("paper")
    wanted = {(table.target.name, table.budget): table.clone for table in suite.tables}
    assert set(wanted.values()) == {"resnet18_8x"}
    resolved = _resolve("attack", "maze", ("none",), "mine", suite)
    assert isinstance(resolved, AttackEntry)
    found = {(each.target, each.budget): each.columns[0].settings[0].clone for each in resolved.tables}
    assert found == wanted


@pytest.mark.parametrize("name", suites.names())
def test_what_is_committed_is_what_would_be_frozen_today(name: str) -> None:
    assert (suites.FOLDER / f"{name}.json").read_text(encoding="utf-8") == suite_text(freeze(name))


def test_the_suites_that_need_no_image_to_be_frozen_are_frozen() -> None:
    assert set(suites.names()) == set(packaged()) - {"many-classes"}


def test_smoke_holds_every_defense_that_is_built_in() -> None:
    held = {entry.name for table in load_suite("smoke").tables for entry in table.defenses}
    assert held == {name for name in names("defense") if origin("defense", name).startswith("model-stealing-bench ")}


@pytest.mark.parametrize("name", suites.names())
def test_the_runs_of_a_frozen_suite_are_what_their_requests_resolve_to(name: str) -> None:
    cells = plans(load_suite(name))
    assert len({cell.run_id for cell in cells}) == len(cells)
    columns = {(c.request.target, c.request.budget, c.request.attack, c.request.recovery): c for c in cells}
    labels = {key: c for c in cells if c.request.defense == "label_only" for key in [(c.request.attack, "labels")]}
    for cell in [*columns.values(), *labels.values()]:
        check(cell)
        assert resolve(cell.request).run_id == cell.run_id


# ------------------------------------------------------------------------------------------------- as written


def test_runs_are_due_seed_by_seed_and_the_undefended_target_first(written) -> None:
    columns = '[{ attack = "dfme", recoveries = ["none", "argmax"] }, { attack = "random_labels", role = "floor" }]'
    suite = written(f'{HEAD}columns = {columns}\ndefenses = ["topk:k=3", "noise:scale=0.5", "none"]\n')
    expected = [
        (defense, attack, recovery, seed, seed if "noise" in defense else 0)
        for seed in (0, 4)
        for defense in ("none", "topk:k=3", "noise:scale=0.5")
        for attack, recovery in (("dfme", "none"), ("dfme", "argmax"), ("random_labels", "none"))
        if attack == "dfme" or defense == "none"
    ]
    assert asked(plans(suite)) == expected


def test_with_copies_each_seed_attacks_a_target_of_its_own(written) -> None:
    line = 'columns = [{ attack = "dfme" }]\ndefenses = ["none", "noise:scale=0.5"]\n'
    runs = plans(written(f"{HEAD}copies = true\n{line}"))
    assert [(cell.request.seed, cell.request.target_seed) for cell in runs] == [(0, 0), (0, 0), (4, 4), (4, 4)]
    assert [cell.request.defense_seed for cell in runs] == [0, 0, 0, 4]
    assert [resolve(cell.request).run_id for cell in runs] == [cell.run_id for cell in runs]
    assert {cell.request.target_seed for cell in plans(written(f"{HEAD}{line}"))} == {0}


def test_a_table_takes_over_what_it_does_not_say_and_a_run_of_two_tables_is_one(written) -> None:
    suite = written(f'{HEAD}{LINE}[[table]]\ntarget = "digits/lenet5"\nbudgets = [200, 300]\n')
    assert [(table.budget, table.seeds) for table in suite.tables] == [(200, (0, 4)), (200, (0, 4)), (300, (0, 4))]
    assert [cell.request.budget for cell in plans(suite)] == [200, 300, 200, 300]


def test_labels_are_attacked_with_the_settings_for_labels(written) -> None:
    defenses = '["none", "topk:k=2", "topk:k=1", "label_only"]'
    suite = written(f'{HEAD}columns = [{{ attack = "dfme" }}]\ndefenses = {defenses}\n')
    found = {cell.request.defense: cell.info for cell in plans(suite)}
    for defense, info in found.items():
        assert info.attack == resolve(module.RunSpec(defense=defense, attack="dfme")).info.attack
    assert found["none"].attack == found["topk:k=2"].attack
    assert found["label_only"].attack == found["topk:k=1"].attack != found["none"].attack


def test_a_defense_enters_at_its_sweep_unless_it_sets_its_knob() -> None:
    assert [setting.spec for setting in defense_entry("topk").settings] == [f"topk:k={k}" for k in (10, 5, 3, 2, 1)]
    assert [setting.spec for setting in defense_entry("topk:k=4").settings] == ["topk:k=4"]
    swept = defense_entry("noise:per_input=true").settings
    assert len(swept) > 1 and all(setting.resolved.params["per_input"] is True for setting in swept)
    chain = defense_entry("topk:k=3+noise:scale=0.1")
    assert (len(chain.settings), chain.stochastic, chain.family) == (1, True, "randomized")
    families = {name: defense_entry(name).family for name in ("none", "temperature", "mad", "noise", "modelguard_s")}
    assert list(families.values()) == ["control", "control", "deterministic", "randomized", "stateful"]
    assert defense_entry("hoda").family == "detection"


@pytest.mark.parametrize(
    ("chain", "family"),
    [
        ("nasty_teacher+rounding", "training"),
        ("rounding+meco", "training"),
        ("prada+nasty_teacher", "training"),
        ("dawn+ini", "training"),
        ("ood_gate+noise", "detection"),
        ("prada+topk:k=3", "detection"),
        ("prada:action=none+modelguard_s", "detection"),
        ("dawn+hoda", "detection"),
        ("dawn+topk:k=3", "deterrent"),
        ("dawn+modelguard_s", "deterrent"),
        ("modelguard_s+noise", "stateful"),
        ("topk+noise", "randomized"),
        ("topk+rounding", "deterministic"),
        ("temperature:temperature=2+noise", "randomized"),  # what begins with a control is none
        ("label_only+dawn", "deterrent"),
    ],
)
def test_a_chain_enters_in_the_class_of_the_link_that_has_a_hand_in_most_answers(chain: str, family: str) -> None:
    assert defense_entry(chain).family == family


def test_a_chain_may_set_one_parameter_in_two_links() -> None:
    spec = "noise:scale=0.1,per_input=true+noise:scale=0.2,per_input=true"
    assert [setting.spec for setting in defense_entry(spec).settings] == [spec]


def test_upper_bounds_are_references(written) -> None:
    columns = '[{ attack = "dfme", recoveries = ["none", "oracle_bayes"] }, { attack = "true_data" }]'
    suite = written(f'{HEAD}columns = {columns}\ndefenses = ["none"]\n')
    assert [column.role for column in suite.tables[0].columns] == ["ranked", "reference", "reference"]
    with pytest.raises(UsageError, match="upper bound"):
        written(f'{HEAD}columns = [{{ attack = "true_data", role = "ranked" }}]\ndefenses = ["none"]\n')


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (f"{HEAD}{LINE}extra = 1\n", UsageError, "table.0.extra"),
        (f"{HEAD}{LINE}".replace("[200]", "[0]"), UsageError, "budgets"),
        (f"{HEAD}{LINE}".replace("[0, 4]", "[4, 4]"), UsageError, "given twice"),
        (f"{HEAD}columns = []\ndefenses = []\n", UsageError, "at least 1"),
        ("title = ", UsageError, "not a TOML file"),
        (f"{HEAD}{LINE}".replace("dualstudent", "dualstudnet"), UnknownName, "dualstudent"),
        (f"{HEAD}{LINE}".replace('"none"', '"topk:k=0"'), BadParameter, "k=0"),
        (
            f'{HEAD}columns = [{{ attack = "dfme", role = "floor" }}]\ndefenses = ["topk"]\n',
            UsageError,
            "need the defense none",
        ),
        (f"{HEAD}{LINE}".replace("digits/", "imagefolder:{folder}/"), UsageError, "--folder"),
    ],
)
def test_what_cannot_be_used_is_refused(written, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        written(text)


def test_a_suite_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="smoke"):
        read_plan("smok")


def test_a_folder_of_images_is_asked_for_by_its_place_and_known_by_its_content(written, photographs, tmp_path) -> None:
    text = f"{HEAD}{LINE}".replace("digits/lenet5", "imagefolder:{folder}/lenet5")
    (tmp_path / "own.toml").write_text(text)
    folder = str(photographs("photos"))
    name = str(tmp_path / "own.toml")
    suite = freeze(name, folder)
    assert folder not in suite_text(suite)
    for cell in plans(suite, module.asked_targets(name, folder)):
        assert folder in cell.request.target
        check(cell)


def test_what_is_run_today_must_be_what_was_frozen(written) -> None:
    suite = written(HEAD + LINE)
    (column,) = suite.tables[0].columns
    other = column.settings[0].model_copy(update={"clone": "lenet5:hidden=7"})
    table = suite.tables[0].model_copy(update={"columns": (column.model_copy(update={"settings": (other,)}),)})
    first = plans(suite.model_copy(update={"tables": (table,)}))[0]
    check(first)  # a clone can be asked for as it was frozen
    changed = first.info.attack.model_copy(update={"version": "0"})
    with pytest.raises(UsageError, match="attack differ"):
        check(Cell(request=first.request, info=first.info.model_copy(update={"attack": changed})))


# ----------------------------------------------------------------------------------------------------- a sweep


def test_a_part_of_a_suite_is_chosen_by_names_and_wildcards(written) -> None:
    columns = '[{ attack = "dfme", recoveries = ["none", "argmax"] }, { attack = "dualstudent" }]'
    suite = written(f'{HEAD}columns = {columns}\ndefenses = ["none", "topk", "mad"]\n')
    assert {c.request.defense for c in plans(choose(suite, defenses=["topk:k=[35]"]))} == {"topk:k=3", "topk:k=5"}
    assert {c.request.attack for c in plans(choose(suite, attacks=["df*"]))} == {"dfme"}
    labels = plans(choose(suite, defenses=["none"], attacks=["* + argmax"], seeds=[4]))
    assert asked(labels) == [("none", "dfme", "argmax", 4, 0)]
    assert plans(choose(suite)) == plans(suite)
    for wrong in ({"defenses": ["zz*"]}, {"attacks": ["maze"]}, {"seeds": [1]}):
        with pytest.raises(UnknownName):
            choose(suite, **wrong)


def test_a_defense_of_ones_own_enters_against_all_columns(written, tmp_path: Path) -> None:
    suite = written(HEAD + LINE)
    (tmp_path / "mine.py").write_text(MINE)
    mine = f"{tmp_path / 'mine.py'}:Mine"
    cells = plans(choose(suite, defenses=[mine]))
    assert [row[0].rpartition("=")[2] for row in asked(cells)] == ["0.1", "0.9"] * 2
    assert [row[3:] for row in asked(cells)] == [(0, 0), (0, 0), (4, 4), (4, 4)]
    for cell in cells:
        check(cell)


def test_a_fresh_store_has_everything_to_do_and_no_estimate(written, store: Store) -> None:
    standings = look(plans(written(HEAD + LINE)), store)
    assert [each.state for each in standings] == ["missing", "missing"]
    cost = estimate(standings, due(standings, retry_failed=False))
    assert (cost.seconds, cost.unknown) == (0, 2)


# --------------------------------------------------------------------------------------------------- freezing


def test_a_frozen_suite_that_differs_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "FOLDER", tmp_path / "frozen")
    (tmp_path / "own.toml").write_text(HEAD + LINE)
    path = tmp_path / "frozen" / "own.json"

    def call(*more: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["suite", "freeze", str(tmp_path / "own.toml"), *more])
        return result.exit_code, result.stderr

    assert call()[0] == 0
    first = path.read_bytes()
    assert "up to date" in call()[1]
    (tmp_path / "own.toml").write_text((HEAD + LINE).replace("[200]", "[400]"))
    code, said = call()
    assert code == 2 and "a changed suite is a changed protocol" in said
    assert path.read_bytes() == first
    assert call("--force")[0] == 0
    assert load_suite("own").tables[0].budget == 400
