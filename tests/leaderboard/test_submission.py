"""From a scaffold to a checked board: entry, submit, check, with records that were made up for the occasion."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.benchmark.submission import collect, misstated
from msbench.benchmark.suite import defense_entry
from msbench.leaderboard import baseline, suites
from msbench.leaderboard.board_check import runs_of
from msbench.leaderboard.contradictions import FLOORED
from msbench.leaderboard.entries import AttackEntry, Submission, TableColumns, alone, read_entry, read_submission
from msbench.leaderboard.store import Store

from .tiny_board import ENTRY, column, record_of, suite, write_entry, write_suites

SPEC = "blue_moon/msbench_blue_moon.py:BlueMoon"


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="msbench")


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """An entry of a defense that was just scaffolded, filled in; the board is empty."""
    monkeypatch.setattr(suites, "FOLDER", tmp_path / "board" / "suites")
    monkeypatch.setattr(baseline, "FOLDER", tmp_path / "baselines")
    subprocess.run(["git", "init", "-q"], check=True)
    write_suites(suites.FOLDER, suite(defense_entry("none"), defense_entry("label_only")))
    assert call("new", "defense", "blue_moon").exit_code == 0
    written = call("leaderboard", "entry", "--suite", "tiny", "--defense", SPEC, "--output", "entry.toml")
    assert written.exit_code == 0, written.output
    fill_in(Path("entry.toml"), name="blue-moon", title="Blue Moon", code="https://example.org", license="MIT")
    text = Path("entry.toml").read_text().replace("authors = []", 'authors = ["A. Nonymous"]')
    Path("entry.toml").write_text(text)
    return Path("entry.toml")


def fill_in(path, **values):
    text = path.read_text()
    for key, value in values.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{key} ="))
        text = text.replace(line, f'{key} = "{value}"', 1)
    path.write_text(text)


def runs(entry, make_record, store="runs", skip=0):
    """Make up the runs that an entry's suite asks for, but for the first few."""
    bundle = collect(entry, Store("nothing"), Path("board"))
    for info in list(runs_of(alone(bundle.suite, bundle.submission)).values())[skip:]:
        labels = {"paid__nll": FLOORED * 0.013} if info.defense.name == "label_only" else {}
        Store(store).save(record_of(make_record, info, **labels))


def submit(entry, *more):
    return call("leaderboard", "submit", entry, "--store", "runs", "--board", "board", *more)


def test_an_unfilled_entry_is_refused_with_all_that_it_lacks(entry):
    call("leaderboard", "entry", "--suite", "tiny", "--defense", SPEC, "--output", "other.toml")
    refused = submit("other.toml")
    assert refused.exit_code == 2
    for key in ("name", "title", "authors", "code", "license"):
        assert f"{key}: " in refused.stderr


def test_a_template_is_not_written_over_another(entry):
    before = entry.read_text()
    refused = call("leaderboard", "entry", "--suite", "tiny", "--defense", SPEC, "--output", entry)
    assert (refused.exit_code, entry.read_text()) == (2, before)


def test_missing_runs_are_told_with_the_command_that_makes_them(entry, make_record):
    runs(entry, make_record, skip=4)
    refused = submit(entry)
    assert refused.exit_code == 2
    assert refused.stdout == f"msbench sweep tiny --defense {SPEC} --store runs\n"
    assert "4 of 9 runs are missing in runs" in refused.stderr
    assert not Path("board/entries").exists()


def test_submit_then_check(entry, make_record):
    runs(entry, make_record)
    ready = submit(entry, "--dry-run")
    assert (ready.exit_code, ready.stderr) == (0, "9 records are ready, 0 are missing\n")
    assert not Path("board/entries").exists()
    done = submit(entry)
    assert done.exit_code == 0, done.output
    assert "git add board/entries/blue-moon.* board/results" in done.stdout
    assert sorted(path.name for path in Path("board/entries").iterdir()) == ["blue-moon.json", "blue-moon.toml"]
    assert Path("board/entries/blue-moon.toml").read_text() == entry.read_text()
    checked = call("leaderboard", "check", "--board", "board")
    assert checked.exit_code == 0, checked.output
    assert "9 records and 1 entries checked, 0 problems" in checked.stderr
    assert submit(entry).exit_code == 0  # the same again changes nothing


def test_a_board_that_git_does_not_keep_is_not_written_into(entry, make_record):
    runs(entry, make_record)
    Path(".gitignore").write_text("/board/\n")
    ignored = submit(entry)
    Path(".gitignore").unlink()
    shutil.rmtree(".git")
    for refused in (ignored, submit(entry)):
        assert refused.exit_code == 2
        assert "board is in no git checkout: give --board DIR, the folder leaderboard of your clone" in refused.stderr
        assert refused.stdout == ""
    assert not Path("board/entries").exists()
    assert submit(entry, "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("built", "suites"),
    [
        ({"board.json": "tiny"}, "--suite tiny"),
        ({"large/board.json": "large", "tiny/board.json": "tiny"}, "--suite large --suite tiny"),
    ],
)
def test_the_pages_of_a_committed_board_are_built_again_and_committed_too(entry, make_record, built, suites):
    runs(entry, make_record)
    for name, title in built.items():
        pages = Path("docs/board") / name
        pages.parent.mkdir(parents=True, exist_ok=True)
        pages.write_text(json.dumps({"suite": title}))
    assert submit(entry).stdout.splitlines()[:3] == [
        "git switch -c blue-moon",
        f"msbench leaderboard build {suites} --board board --out docs/board",
        "git add board/entries/blue-moon.* board/results docs/board",
    ]


def test_the_pages_of_other_boards_are_left_as_they_are(entry, make_record):
    runs(entry, make_record)
    pages = Path("docs/board")
    pages.mkdir(parents=True)
    (pages / "board.json").write_text(json.dumps({"suite": "another"}))
    assert "docs/board" not in submit(entry).stdout


def test_an_entry_of_one_suite_is_not_replaced_by_that_of_another(entry, make_record):
    runs(entry, make_record)
    assert submit(entry).exit_code == 0
    before = Path("board/entries/blue-moon.toml").read_text()
    frozen = suite(defense_entry("none"), defense_entry("label_only")).model_copy(update={"name": "second"})
    write_suites(suites.FOLDER, frozen)
    fill_in(entry, suite="second")
    refused = submit(entry)
    assert refused.exit_code == 2
    assert "blue-moon.toml is of the suite tiny, and an entry is of one" in refused.stderr
    assert "enter second under another name, blue-moon-second say" in refused.stderr
    assert Path("board/entries/blue-moon.toml").read_text() == before
    fill_in(entry, name="blue-moon-second")
    assert submit(entry).exit_code == 0
    assert Path("board/entries/blue-moon.toml").read_text() == before


def test_a_committed_run_or_another_s_name_is_not_replaced(entry, make_record):
    runs(entry, make_record)
    assert submit(entry).exit_code == 0
    first = next(iter(Store("runs").records()))
    Store("runs").save(record_of(make_record, first.spec, right=300))
    refused = submit(entry)
    assert refused.exit_code == 2
    assert "already, with other numbers" in refused.stderr
    assert "one that you never committed can be deleted" in refused.stderr
    entry.write_text(entry.read_text().replace("A. Nonymous", "Somebody Else"))
    assert "of another method: choose another name" in submit(entry).stderr


def test_records_of_an_earlier_attempt_are_named_with_the_commands_that_delete_them(entry, make_record):
    runs(entry, make_record)
    assert submit(entry).exit_code == 0
    before = {path for path in Path("board/results").rglob("*.json") if "BlueMoon" in str(path)}
    module = Path("blue_moon/msbench_blue_moon.py")
    module.write_text(module.read_text() + "# changed\n")
    runs(entry, make_record)
    for more in (("--dry-run",), ()):
        refused = submit(entry, *more)
        assert refused.exit_code == 2
        assert {Path(line.removeprefix("rm ")) for line in refused.stdout.splitlines()} == before
        assert f"{len(before)} records on the board are of blue-moon as it was before" in refused.stderr
    for path in before:
        path.unlink()
    done = submit(entry)
    assert done.exit_code == 0, done.output
    assert "9 records and 1 entries checked, 0 problems" in done.stderr


def test_half_an_entry_is_written_again(entry, make_record):
    runs(entry, make_record)
    assert submit(entry).exit_code == 0
    Path("board/entries/blue-moon.json").unlink()
    assert submit(entry).exit_code == 0
    assert Path("board/entries/blue-moon.json").is_file()


def test_partial_entries_are_told_apart(entry, make_record):
    runs(entry, make_record, skip=4)
    entry.write_text(entry.read_text().replace("# partial = true", "partial = true"))
    done = submit(entry)
    assert done.exit_code == 0, done.output
    assert "blue-moon: 4 of its 9 runs are missing" in done.stderr


def test_a_defense_that_breaks_its_contract_is_refused(entry, make_record):
    module = Path("blue_moon/msbench_blue_moon.py")
    module.write_text(module.read_text().replace("return (1 - self.share)", "return 2 * (1 - self.share)"))
    runs(entry, make_record)
    refused = submit(entry)
    assert refused.exit_code == 4
    assert "BlueMoon:share=0.1: probabilities: " in refused.stdout
    assert not Path("board/entries").exists()


def test_undeclared_access_is_refused(entry, make_record):
    module = Path("blue_moon/msbench_blue_moon.py")
    module.write_text(module.read_text().replace('knob="share",', 'knob="share",\n        needs=("data",),'))
    refused = submit(entry)
    assert refused.exit_code == 2
    assert 'access must be ["data"], which is what the code declares' in refused.stderr


def test_an_edited_run_is_not_taken(entry, make_record):
    from .tiny_board import edit

    runs(entry, make_record)
    first = next(iter(Store("runs").records()))
    edit(Store("runs").path_of(first), stolen__clone_accuracy=0.1)
    refused = submit(entry)
    assert refused.exit_code == 2
    assert "its end is not stolen.clone_accuracy" in refused.stderr


def test_an_attack_is_submitted_against_what_the_suite_defends_with(entry, make_record, tmp_path):
    assert call("new", "attack", "red_sun").exit_code == 0
    spec = "red_sun/msbench_red_sun.py:RedSun:batch=250"
    assert call("leaderboard", "entry", "--suite", "tiny", "--attack", spec, "--output", "sun.toml").exit_code == 0
    sun = Path("sun.toml")
    fill_in(sun, name="red-sun", title="Red Sun", code="https://example.org", license="MIT")
    sun.write_text(sun.read_text().replace("authors = []", 'authors = ["A. Nonymous"]'))
    refused = submit(sun)
    assert refused.exit_code == 2
    assert (
        f"msbench run --target digits/lenet5 --defense label_only --attack {spec} --recovery none --budget 20000 "
        "--store runs --seed 0 " in refused.stdout
    )
    runs(sun, make_record)
    done = submit(sun)
    assert done.exit_code == 0, done.output
    assert f"red-sun steals {(0.703 - 0.1) / (0.987 - 0.1):.3f} of label_only" in done.stderr


# ----------------------------------------------------------------------------------- entries beside their code

CHAIN = "topk:k=3+rounding:decimals=2"


def chain(**changes):
    """An entry of components that are installed, on the board; it has no runs, which is another problem."""
    resolved = defense_entry(CHAIN).model_copy(update={"name": "blend", **changes})
    return write_entry(Path("board"), resolved, ENTRY.replace('defense = "blend"', f'defense = "{CHAIN}"'))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"family": "deterrent"}, "family is 'deterrent', by its code 'deterministic'"),
        ({"preserves": "everything"}, "preserves is 'everything', by its code ''"),
        ({"argmax_preserving": True}, "argmax_preserving is True, by its code False"),
        ({"weakness": "none"}, "weakness is 'none', by its code ''"),
    ],
)
def test_an_entry_of_what_is_installed_is_compared_with_its_code(entry, changes, field):
    path = chain()
    assert list(misstated(read_submission(path))) == []
    assert "by its code" not in call("leaderboard", "check", "--board", "board").stdout
    chain(**changes)
    assert list(misstated(read_submission(path))) == [field]
    checked = call("leaderboard", "check", "--board", "board")
    assert checked.exit_code == 4
    assert f"{path}: {field}" in checked.stdout


def test_a_setting_of_what_is_installed_is_compared_with_its_code(entry):
    (setting,) = defense_entry(CHAIN).settings
    params = setting.resolved.params | {"0.renormalize": False}
    resolved = setting.resolved.model_copy(update={"version": "9+9", "params": params})
    path = chain(settings=(setting.model_copy(update={"labels_only": True, "resolved": resolved}),))
    assert [line.partition(" is ")[0] for line in misstated(read_submission(path))] == [
        "settings.0.labels_only",
        "settings.0.resolved.params.0.renormalize",
        "settings.0.resolved.version",
    ]


def test_an_upper_bound_that_calls_itself_ranked_is_found_by_its_code(entry):
    text = ENTRY.replace('defense = "blend"', 'attack = "true_data"')
    tables = (TableColumns(target="digits/lenet5", budget=20_000, columns=(column("true_data"),)),)
    path = write_entry(Path("board"), AttackEntry(name="blend", tables=tables), text)
    (line,) = misstated(read_submission(path))
    assert line.startswith("its code does not resolve: true_data")
    assert "is an upper bound" in line


def test_nothing_that_an_entry_names_is_imported_by_a_check(entry, monkeypatch):
    Path("trap.py").write_text("from pathlib import Path; Path('imported').touch()")
    monkeypatch.syspath_prepend(Path.cwd())
    resolved = defense_entry("topk:k=3").model_copy(update={"name": "blend"})
    (setting,) = resolved.settings
    for spec in ("trap.py:Trap", "trap:Trap", "topk:k=3+trap.py:Trap"):
        text = ENTRY.replace('defense = "blend"', f'defense = "{spec}"')
        name = spec.replace("topk:k=3", "topk")
        version = spec.replace("topk:k=3", "1").replace("trap.py:Trap", "1+0123abcd").replace("trap:Trap", "1")
        component = setting.resolved.model_copy(update={"name": name, "version": version, "params": {"0.k": 3}})
        settings = (setting.model_copy(update={"spec": spec, "resolved": component}),)
        path = write_entry(Path("board"), resolved.model_copy(update={"settings": settings}), text)
        assert list(misstated(read_submission(path))) == []
        assert "blend.toml: none of its" in call("leaderboard", "check", "--board", "board").stdout
    text = ENTRY.replace('defense = "blend"', 'attack = "dfme"') + 'recoveries = ["trap.py:Trap"]\n'
    Path("blend.toml").write_text(text)
    tables = (TableColumns(target="digits/lenet5", budget=20_000, columns=(column("dfme", "trap.py:Trap"),)),)
    attack = Submission(read_entry(Path("blend.toml")), AttackEntry(name="blend", tables=tables))
    assert list(misstated(attack)) == []
    assert not Path("imported").exists()
    assert "defines no 'Trap'" in next(misstated(attack, Path.cwd()))
    assert Path("imported").exists()
    tables = (TableColumns(target="digits/lenet5", budget=20_000, columns=(column("dfme", "trap:Trap"),)),)
    attack = Submission(
        attack.entry.model_copy(update={"recoveries": ("trap:Trap",)}), AttackEntry(name="blend", tables=tables)
    )
    assert list(misstated(attack)) == []
    assert "trap defines no 'Trap'" in next(misstated(attack, Path.cwd()))


def test_an_entry_of_a_file_is_compared_with_the_file_where_it_lies(entry, make_record):
    runs(entry, make_record)
    assert submit(entry).exit_code == 0
    submission = read_submission(Path("board/entries/blue-moon.toml"))
    assert list(misstated(submission)) == []
    assert list(misstated(submission, Path("blue_moon"))) == []
    forged = submission.resolved.model_copy(update={"stochastic": True})
    assert list(misstated(Submission(submission.entry, forged), Path("blue_moon"))) == [
        "stochastic is True, by its code False"
    ]
    module = Path("blue_moon/msbench_blue_moon.py")
    module.write_text(module.read_text() + "# changed\n")
    assert {line.partition(" is ")[0].rpartition(".")[2] for line in misstated(submission, Path("blue_moon"))} == {
        "version"
    }
    assert "does not resolve: no file" in next(misstated(submission, Path("elsewhere")))


def test_where_components_cannot_be_loaded_a_check_says_so(entry, monkeypatch):
    chain(family="deterrent")
    monkeypatch.setitem(sys.modules, "msbench.benchmark.submission", None)
    checked = call("leaderboard", "check", "--board", "board")
    assert "by its code" not in checked.stdout
    assert "entries are not compared with the code of what is installed: import of" in checked.stderr


def test_what_a_check_prints_of_others_is_printable(entry):
    folder = Path("board/results")
    folder.mkdir()
    (folder / "x\n::error::y.json").write_text('{"\\n::error::z": 1}')
    checked = call("leaderboard", "check", "--board", "board")
    assert checked.exit_code == 4
    assert all(line.isprintable() and not line.startswith("::") for line in checked.stdout.splitlines())
    listed = call("leaderboard", "check", "board/results")
    assert all(line.isprintable() and not line.startswith("::") for line in listed.stdout.splitlines())
    assert "\\n::error::y" in checked.stdout and "\\n::error::y" in listed.stdout
