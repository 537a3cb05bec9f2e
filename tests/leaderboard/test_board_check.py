"""What a pull request may do to a board, and what it may not."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli
from msbench.leaderboard import baseline, board_check, history, suites
from msbench.leaderboard.baseline import Baseline, BaselineCell, dumps
from msbench.leaderboard.board_check import check_board, runs_of
from msbench.leaderboard.contradictions import FLOORED
from msbench.leaderboard.entries import AttackEntry, TableColumns, alone, read_submission, with_defenses
from msbench.leaderboard.flags import DISTORTED, MOVED
from msbench.leaderboard.record import SCHEMA_VERSION
from msbench.leaderboard.store import Store
from msbench.leaderboard.verification import threshold

from .tiny_board import ENTRY, column, component, defense, edit, fill, record_of, suite, write_entry, write_suites

BLEND = defense("blend", "blend:share=0.1", "blend:share=0.9")


@pytest.fixture
def board(tmp_path, monkeypatch, make_record):
    """A board that has everything: the suite's own runs, an entry and its runs, and a baseline."""
    monkeypatch.setattr(suites, "FOLDER", tmp_path / "board" / "suites")
    monkeypatch.setattr(baseline, "FOLDER", tmp_path / "baselines")
    frozen = suite()
    write_suites(suites.FOLDER, frozen)
    write_entry(tmp_path / "board", BLEND)
    store = Store(tmp_path / "board" / "results")
    fill(store, frozen, make_record)
    fill(store, suite(BLEND), make_record, right=500)
    write_baseline(0.703)
    return tmp_path / "board"


def write_baseline(accuracy):
    values = tuple(accuracy + shift for shift in (-0.004, -0.002, 0.0, 0.002, 0.004))
    cell = BaselineCell(
        target="digits/lenet5", budget=20_000, defense="none", attack="dualstudent", recovery="none",
        seeds=(0, 1, 2, 3, 4), clone_accuracy=values,
    )  # fmt: skip
    baseline.FOLDER.mkdir(exist_ok=True)
    text = dumps(Baseline(suite="tiny", protocol="2026.1", cells=(cell,)))
    (baseline.FOLDER / "tiny.json").write_text(text)


def problems(board, changes=()):
    return [f"{path.name}: {text}" for path, text in check_board(board, "2026.1", changes).problems]


def record_files(board, name="blend"):
    return sorted((board / "results" / "digits" / "lenet5" / name).rglob("*.json"))


def test_a_board_that_has_everything_has_no_problem(board):
    found = check_board(board, "2026.1")
    assert found.problems == []
    assert (found.records, found.entries, found.notes) == (12, 1, [])


def test_an_edited_record_is_refused(board):
    first = record_files(board)[0]
    edit(first, stolen__clone_accuracy=0.1)
    assert any("its end is not stolen.clone_accuracy" in text for text in problems(board))


def test_a_record_that_leaves_a_cost_out_is_refused(board):
    first = record_files(board)[0]
    text = first.read_text()
    edit(first, paid__shifted=None)
    assert any("paid.shifted is missing" in problem for problem in problems(board))
    first.write_text(text)
    edit(first, env__arithmetic=None)
    assert any("env.arithmetic is missing" in problem for problem in problems(board))


def test_a_record_of_other_hyperparameters_is_refused_and_the_difference_is_named(board, make_record):
    (info, *_) = runs_of(suite(BLEND)).values()
    other = info.model_copy(update={"attack": component("dualstudent", lr_student=0.003)})
    Store(board / "results").save(record_of(make_record, other))
    (problem,) = problems(board)
    assert "no suite and no entry asks for" in problem
    assert "of blend: attack.params.lr_student is 0.003, there 0.3" in problem


def test_the_difference_is_looked_for_a_few_times_only(board, make_record, monkeypatch):
    monkeypatch.setattr(board_check, "_EXPLAINED", 2)
    for info in runs_of(suite(BLEND)).values():
        other = info.model_copy(update={"attack": component("dualstudent", lr_student=0.003)})
        Store(board / "results").save(record_of(make_record, other))
    found = [problem for problem in problems(board) if "no suite and no entry asks for" in problem]
    assert sum("the nearest" in problem for problem in found) == 2 < len(found)


def test_a_missing_run_is_refused_unless_the_entry_says_so(board):
    record_files(board)[0].unlink()
    (problem,) = problems(board)
    assert "blend.toml: 1 of its 6 runs are missing" in problem
    write_entry(board, BLEND, ENTRY + "partial = true\n")
    found = check_board(board, "2026.1")
    assert (found.problems, found.notes) == ([], ["blend: 1 of its 6 runs are missing"])
    shutil.rmtree(board / "results" / "digits" / "lenet5" / "blend")
    assert "none of its 6 runs" in problems(board)[0]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("entries/README", "hello", "is no entry"),
        ("entries/lonely.json", "{}", "is no entry"),
        ("entries/deep/other.toml", ENTRY, "is no entry"),
        ("entries/other.toml", ENTRY, "must be called blend.toml"),
        ("results/notes.txt", "hello", "is no record"),
        ("results/digits/.hidden.json", "{}", "is no record"),
        ("results/digits/x.json", "{", "Invalid JSON"),
        ("results/digits/x.json", " " * 1_000_001, "is larger than"),
    ],
)
def test_strange_files_are_refused(board, name, text, reason):
    path = board / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    (problem,) = problems(board)
    assert problem.startswith(path.name)
    assert reason in problem


def test_what_belongs_to_runs_in_progress_is_no_part_of_a_board(board):
    for folder in (".states", ".claims", ".logs"):
        (board / "results" / folder).mkdir()
        (board / "results" / folder / "0123456789ab.pt").write_bytes(b"x")
    assert problems(board) == []


def test_links_are_refused(board, tmp_path):
    (board / "results" / "away.json").symlink_to(tmp_path)
    assert problems(board) == ["away.json: is a link"]


def test_a_folder_that_is_a_link_is_refused_and_not_followed(board, tmp_path, monkeypatch):
    monkeypatch.setattr(board_check, "record_files", lambda folder: pytest.fail(f"{folder} is followed"))
    for name in ("entries", "results"):
        (board / name).rename(tmp_path / name)
        (board / name).symlink_to(tmp_path / name)
    found = check_board(board, "2026.1")
    assert [(path.name, text) for path, text in found.problems] == [("entries", "is a link"), ("results", "is a link")]
    assert (found.records, found.entries) == (0, 0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('suite = "nowhere"', "unknown suite 'nowhere'"),
        ('protocol = "2020.1"', "protocol 2020.1 is not 2026.1"),
    ],
)
def test_entries_of_other_suites_and_protocols_are_refused(board, line, reason):
    key = line.partition(" =")[0]
    write_entry(board, BLEND, "\n".join(x for x in ENTRY.splitlines() if not x.startswith(key)) + f"\n{line}\n")
    assert any(text.startswith("blend.toml") and reason in text for text in problems(board))


def test_an_entry_cannot_take_the_name_of_the_suite_s_own_defense(board):
    write_entry(board, BLEND.model_copy(update={"name": "none"}), ENTRY.replace('name = "blend"', 'name = "none"'))
    assert any("has a defense 'none' of its own" in text for text in problems(board))


def test_failed_runs_and_runs_without_a_curve_are_refused(board, make_record):
    store = Store(board / "results")
    first, second, *_ = [store.find(path.stem[-12:]) for path in record_files(board)]
    for path in record_files(board)[:2]:
        path.unlink()
    store.save(make_record(status="failed", spec=first.spec.model_dump(), curve=[]))
    store.save(second.model_copy(update={"curve": []}))
    found = problems(board)
    assert any("is failed: only runs that are done" in text for text in found)
    assert any("has no curve or no diagnostics" in text for text in found)


@pytest.mark.parametrize(("accuracy", "words"), [(0.9, "weaker than its reference"), (0.5, "suspiciously strong")])
def test_the_gate_is_two_sided(board, accuracy, words):
    write_baseline(accuracy)
    (problem,) = problems(board)
    assert problem == f"tiny.json: suite tiny, digits/lenet5, 20,000 queries: dualstudent is {words}"


def test_a_suite_without_a_baseline_is_a_note(board):
    (baseline.FOLDER / "tiny.json").unlink()
    found = check_board(board, "2026.1")
    assert found.problems == []
    assert found.notes == ["suite tiny has no baseline: its gate stays closed and nothing is ranked"]


# ------------------------------------------------------------------------------------------------ against a base


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(params=["commit", "copy"])
def changes(board, tmp_path, request):
    """What changed since the board was as it is now: since a commit, and against a copy."""
    if request.param == "copy":
        copy = shutil.copytree(board, tmp_path / "copy")
        return lambda: history.against(board, copy)
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "board")
    git(tmp_path, "switch", "-q", "-c", "branch")
    return lambda: history.since(board, "main")


def test_nothing_changed_and_something_added_are_no_problem(board, changes, make_record):
    assert list(changes()) == []
    other = defense("other", "other:share=0.5")
    write_entry(board, other, ENTRY.replace('"blend"', '"other"'))
    fill(Store(board / "results"), suite(other), make_record, right=400)
    assert len(list(changes())) == 5
    assert problems(board, changes()) == []


def test_removed_and_changed_records_are_refused_and_the_scores_named(board, changes, make_record):
    removed, changed, *_ = record_files(board)
    record = Store(board / "results").find(changed.stem[-12:])
    removed.unlink()
    Store(board / "results").save(record_of(make_record, record.spec, right=300))
    found = problems(board, changes())
    assert f"{removed.name}: was committed and is removed: results only grow" in found
    (text,) = [text for text in found if text.startswith(changed.name) and "is changed" in text]
    was, now = record.stolen.clone_accuracy, 0.3 + 0.003 * record.spec.seed
    allowed = threshold([0.5, 0.503, 0.506])
    assert text.endswith(f"clone_accuracy {was:.4f} became {now:.4f}, beyond ± {allowed:.4f}")


def test_what_others_commit_meanwhile_is_no_change_of_the_branch(board, tmp_path, make_record):
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "board")
    git(tmp_path, "switch", "-q", "-c", "branch")
    removed = record_files(board)[0]
    git(tmp_path, "rm", "-q", str(removed))
    git(tmp_path, "commit", "-q", "-m", "clean up")
    git(tmp_path, "switch", "-q", "main")
    (board / "entries" / "later.toml").write_text("later")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "another's")
    git(tmp_path, "switch", "-q", "branch")
    assert [(change.path, change.removed) for change in history.since(board, "main")] == [(removed, True)]


def test_an_entry_that_vanishes_with_its_records_is_refused(board, changes):
    shutil.rmtree(board / "results" / "digits" / "lenet5" / "blend")
    shutil.rmtree(board / "entries")
    found = problems(board, changes())
    assert len([text for text in found if "was committed and is removed" in text]) == 8


def test_a_frozen_suite_is_not_changed(board, changes):
    path = suites.FOLDER / "tiny.json"
    path.write_text(path.read_text().replace('"title": "tiny"', '"title": "mine"'))
    (text,) = problems(board, changes())
    assert text.startswith("tiny.json: is changed: a frozen suite says which runs count; leave it out")


def test_what_was_entered_is_not_changed(board, changes):
    other = defense("blend", "blend:share=0.1", "blend:share=0.9", family="deterrent")
    write_entry(board, other, ENTRY.replace("by A. Researcher", "by another"))
    assert problems(board, changes()) == [
        "blend.json: what was entered is not changed: other settings are another entry"
    ]


def test_a_defense_called_as_one_of_the_folders_has_no_other_rights(board, changes, make_record):
    def record(**keys):
        other = make_record(spec__defense="entries", **keys)
        return Store(board / "results").save(other), other

    path, _ = record()
    before = path.read_bytes()
    path.unlink()
    changed = history.Change(path, before, False)
    record(stolen__kl=0.62)
    found = check_board(board, "2026.1", [changed])
    assert any("was committed and is changed" in text for where, text in found.problems if where == path)


@pytest.mark.parametrize("folder", ["suites", "baselines"])
def test_a_submission_brings_nothing_that_it_is_judged_by(board, changes, folder):
    path = board / folder / "mine.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text((suites.FOLDER / "tiny.json").read_text().replace('"name": "tiny"', '"name": "mine"'))
    (text,) = problems(board, changes())
    assert text.startswith("mine.json: is new: ")
    assert text.endswith("; leave it out, and ask for it in an issue: maintainers make and merge it themselves")
    if folder == "baselines":
        (text,) = problems(board, [history.Change(path, b"{}", False)])
        assert text.startswith("mine.json: is changed: attacks are judged by it; ")


@pytest.mark.parametrize("place", ["results/.states/0123456789ab.pt", "results/.claims", "entries/.logs/x.toml"])
def test_a_submission_brings_nothing_of_runs_in_progress(board, changes, tmp_path, place):
    path = board / place
    path.parent.mkdir(exist_ok=True)
    if path.suffix:
        path.write_bytes(b"x")
    else:
        path.symlink_to(tmp_path)
    assert problems(board) == []
    assert problems(board, changes()) == [f"{path.name}: is new: it is of runs in progress, leave it out"]


def test_what_a_link_leads_to_is_compared_and_not_read(board, tmp_path):
    (board / "away").symlink_to(tmp_path)
    copy = shutil.copytree(board, tmp_path / "copy", symlinks=True)
    assert list(history.against(board, copy)) == []
    (board / "away").unlink()
    (board / "away").symlink_to(board)
    assert list(history.against(board, copy)) == [history.Change(board / "away", bytes(tmp_path), False)]


def test_other_files_are_noted(board, changes):
    (board / "board.py").write_text("print('ranked')")
    (board / "__pycache__").mkdir()
    (board / "__pycache__" / ".gitignore").write_text("*")
    (board / "__pycache__" / "board.pyc").write_bytes(b"x")
    found = check_board(board, "2026.1", changes())
    assert (found.problems, found.notes) == (
        [],
        [f"{board / 'board.py'} is new, and is no part of the board: review it as code"],
    )
    removed = history.Change(board / "check.py", b"", True)
    (note,) = check_board(board, "2026.1", [removed]).notes
    assert note.startswith(f"{removed.path} is removed, and is no part")


def test_a_record_holds_nothing_that_a_terminal_obeys(board):
    first = record_files(board)[0]
    edit(first, flags=["fine \x1b]0;pwned"])
    assert any("'flags.0': only printable characters" in text for text in problems(board))


def test_a_new_record_of_an_old_schema_is_refused(board, changes):
    first = record_files(board)[0]
    text = first.read_text()
    first.unlink()
    added = [change for change in changes() if not change.removed]
    assert added == []
    first.write_text(text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 3'))
    new = history.Change(first, None, False)
    assert any("is new, but of schema version 3" in text for text in problems(board, [new]))


def test_a_new_record_must_have_attacked_the_weights_that_suites_name(board):
    first = record_files(board)[0]
    new = history.Change(first, None, False)
    assert problems(board, [new]) == []
    (table,) = suite().tables
    weights = {0: "cd" * 32}
    write_suites(suites.FOLDER, suite().model_copy(update={"tables": (table.model_copy(update={"weights": weights}),)}))
    (text,) = problems(board, [new])
    assert text.startswith(f"{first.name}: attacked other weights")
    assert problems(board) == []  # what was committed before stays
    edit(first, target__digest=weights[0])
    assert problems(board, [new]) == []


# ------------------------------------------------------------------------------------- what honest users pay


def costs(board, number=0, **changes):
    """Edit what a record says that honest users pay, and say what is found."""
    edit(record_files(board)[number], **{f"paid__{name}": value for name, value in changes.items()})
    return [text for text in problems(board) if ": paid: the same defense" in text]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"l1__mean": 0.05}, "paid.l1.mean is 0.05, 0.08 in "),
        ({"l1__mean": 0.0801}, "paid.l1.mean is 0.0801, 0.08 in "),
        ({"l1__max": 0.6}, "paid.l1.max is 0.6, 0.5 in "),
        ({"nll": 0.04}, "paid.nll is 0.04, 0.05 in "),
        ({"defended_accuracy": 0.985, "argmax_changed": 0.002}, "paid.defended_accuracy is 0.985, 0.987 in "),
        ({"shifted__l1": 0.2}, "paid.shifted.l1 is 0.2, 0.1 in "),
    ],
)
def test_one_defense_of_the_same_weights_costs_the_same_whatever_the_attack(board, changes, reason):
    (text,) = costs(board, **changes)
    first, *others = record_files(board)
    assert text.startswith(f"{first.name}: paid: the same defense of the same weights costs otherwise: {reason}")
    assert any(str(other) in text for other in others)


def test_on_another_machine_it_costs_the_same_but_for_rounding(board):
    edit(record_files(board)[0], env__arithmetic="0123456789ab")
    assert costs(board, l1__mean=0.0801, l1__max=0.6, nll=0.06) == []
    (text,) = costs(board, l1__mean=0.086)
    assert "paid.l1.mean is 0.086, 0.08 in " in text


@pytest.mark.parametrize(
    ("entry", "compared"),
    [
        ({"needs": ("surrogate",)}, True),
        ({"needs": ("data",)}, False),
        ({"stochastic": True, "family": "training"}, False),
        ({"stochastic": True, "family": "randomized"}, False),
        ({"family": "stateful"}, False),
        ({"family": "deterrent"}, False),
    ],
)
def test_what_draws_learns_or_remembers_may_cost_otherwise_each_time(board, entry, compared):
    access = f"access = [{', '.join(map(repr, entry.get('needs', ())))}]\n"
    write_entry(board, BLEND.model_copy(update=entry), ENTRY + access)
    assert len(costs(board, l1__mean=0.05)) == compared


def test_a_flag_that_its_numbers_and_its_declaration_call_for_is_missed(board):
    lacking = f"{record_files(board)[0].name}: flags: lacks"
    edit(record_files(board)[0], paid__argmax_changed=0.001)
    assert f"{lacking} {DISTORTED!r}, which its numbers call for" in problems(board)
    edit(record_files(board)[0], flags=[DISTORTED], paid__defended_accuracy_before=0.976)
    assert [text for text in problems(board) if "flags" in text] == [f"{lacking} {MOVED!r}, which its numbers call for"]


@pytest.mark.parametrize("family", ["deterministic", "randomized", "stateful", "deterrent", "training", "detection"])
def test_detectors_judge_queries_and_no_others_do(board, family):
    write_entry(board, BLEND.model_copy(update={"family": family, "stochastic": family == "randomized"}))

    def told():
        return [text.partition(": ")[2] for text in problems(board) if ": diagnostics: " in text]

    missing = "diagnostics: detection is missing, but blend is of the family detection, which judges queries"
    assert told() == [missing] * 6 * (family == "detection")
    for path in record_files(board):
        edit(path, diagnostics__detection={"flagged": 0, "refused": 0, "first_flagged": None})
    extra = f"diagnostics: detection is there, but blend is of the family {family}, which judges nothing"
    assert told() == [extra] * 6 * (family not in ("detection", "training"))  # a chain of the latter may have both


def test_chance_moves_what_draws(board):
    drawn = BLEND.model_copy(update={"stochastic": True, "family": "randomized"})
    write_entry(board, drawn)
    first = record_files(board)[0]
    for before, missed in ((0.93, False), (0.91, True)):  # among 1,000 images, chance moves by up to 0.053 and 0.058
        edit(first, paid__defended_accuracy_before=before)
        assert [text for text in problems(board) if first.name in text and "flags: lacks" in text] == (
            [f"{first.name}: flags: lacks {MOVED!r}, which its numbers call for"] if missed else []
        )


def test_labels_cost_what_their_errors_cost(board):
    settings = tuple(each.model_copy(update={"labels_only": True}) for each in BLEND.settings)
    write_entry(board, BLEND.model_copy(update={"settings": settings}))
    wrong = FLOORED * 0.013
    assert f"{record_files(board)[0].name}: paid: nll is 0.05, but labels of this accuracy have {wrong:.6g}" in (
        problems(board)
    )
    for path in record_files(board):
        edit(path, paid__nll=wrong)
    assert problems(board) == []


def test_code_that_was_not_committed_is_noted(board):
    first = record_files(board)[0]
    edit(first, env__dirty=True)
    found = check_board(board, "2026.1")
    assert found.problems == []
    assert found.notes == [f"1 records are of code with changes that were not committed: {first.stem[-12:]}"]


def test_an_unknown_commit_is_a_usage_error(board, tmp_path):
    git(tmp_path, "init", "-q")
    call = CliRunner().invoke(cli, ["leaderboard", "check", "--board", str(board), "--base", "--output=x"])
    assert call.exit_code == 2
    assert not Path("x").exists()


# ---------------------------------------------------------------------------------------------- stronger attacks


def test_a_stronger_attack_stands_apart_and_names_what_it_lowers(board, make_record):
    columns = (column("crowbar", batch=64),)
    resolved = AttackEntry(
        name="crowbar", tables=(TableColumns(target="digits/lenet5", budget=20_000, columns=columns),)
    )
    text = ENTRY.replace('name = "blend"', 'name = "crowbar"').replace('defense = "blend"', 'attack = "crowbar"')
    path = write_entry(board, resolved, text)
    submission = read_submission(path)
    store = Store(board / "results")
    before = check_board(board, "2026.1")
    assert any("none of its 6 runs" in text for _, text in before.problems)
    for info in runs_of(alone(suite(), submission)).values():
        store.save(record_of(make_record, info, right=800 if info.defense.name == "label_only" else 600))
    found = check_board(board, "2026.1")
    assert found.problems == []
    share = (0.803 - 0.1) / (0.987 - 0.1)
    assert f"LOWERED: crowbar steals {share:.3f} of label_only" in found.notes[1]
    assert found.notes[0].startswith("crowbar steals 0.567 of none")
    assert len(found.notes) == 2
    extended = with_defenses(suite(), [read_submission(board / "entries" / "blend.toml")])
    for info in list(runs_of(alone(extended, submission)).values())[-3:]:
        assert info.defense.name == "blend"
        store.save(record_of(make_record, info, right=700))
    found = check_board(board, "2026.1")
    assert found.problems == []
    assert found.notes[2].startswith("LOWERED: crowbar steals 0.680 of blend:share=0.9")
    site = board.with_name("site")
    built = CliRunner().invoke(
        cli, ["leaderboard", "build", "--suite", "tiny", "--board", str(board), "--out", str(site)]
    )
    assert built.exit_code == 0, built.output
    assert "LOWERED: crowbar steals 0.680 of blend:share=0.9" in (site / "index.html").read_text()


def test_an_attack_that_leaves_out_tables_is_not_complete(board, make_record):
    (table,) = suite().tables
    larger = table.model_copy(update={"budget": 40_000})
    frozen = suite().model_copy(update={"tables": (table, larger)})
    write_suites(suites.FOLDER, frozen)
    tables = (TableColumns(target="digits/lenet5", budget=20_000, columns=(column("crowbar", batch=64),)),)
    text = ENTRY.replace('name = "blend"', 'name = "crowbar"').replace('defense = "blend"', 'attack = "crowbar"')
    path = write_entry(board, AttackEntry(name="crowbar", tables=tables), text)
    fill(Store(board / "results"), alone(frozen, read_submission(path)), make_record, right=600)
    told = "leaves out digits/lenet5, 40,000 queries"
    assert [text for text in problems(board) if "crowbar" in text] == [
        f"crowbar.toml: {told}: run these too, or say partial = true"
    ]
    write_entry(board, AttackEntry(name="crowbar", tables=tables), text + "partial = true\n")
    found = check_board(board, "2026.1")
    assert [text for path, text in found.problems if "crowbar" in path.name] == []
    assert f"crowbar: {told}" in found.notes


def test_a_defense_cannot_be_run_under_weaker_attacks_than_others(board):
    first = record_files(board)[0]
    edit(first, budget__spent=19_000, budget__stop="tired")
    assert any(
        "budget: the same attack spent otherwise: budget.spent is 19000, 20000 in " in x for x in problems(board)
    )


@pytest.mark.parametrize("role", ["reference", "ranked"])
def test_an_upper_bound_is_no_stronger_attack(tmp_path, role):
    columns = (column("dualstudent", "oracle_bayes", role=role),)
    resolved = AttackEntry(name="blend", tables=(TableColumns(target="t", budget=1, columns=columns),))
    path = write_entry(tmp_path, resolved, ENTRY.replace("defense =", "attack ="))
    with pytest.raises(Exception, match="an upper bound lowers no score"):
        read_submission(path)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_exits_with_4_and_a_line_for_each_problem(board):
    def call(*arguments):
        return CliRunner().invoke(cli, ["leaderboard", "check", "--board", str(board), *arguments])

    clean = call()
    assert (clean.exit_code, clean.stdout) == (0, "")
    assert clean.stderr == "12 records and 1 entries checked, 0 problems\n"
    edit(record_files(board)[0], stolen__kl=0.001)
    refused = call()
    assert refused.exit_code == 4
    assert refused.stdout.count("\n") == 1
    assert "Pinsker" in refused.stdout


@pytest.mark.parametrize(
    ("clone", "pool", "of_all", "reason"),
    [
        ("lenet5:norm=batch,hidden=512", "patches", None, None),
        ("resnet34_8x", None, None, "its clone is resnet34_8x, but the suite's are of the target's architecture"),
        ("resnet18_8x", "mnist", "resnet18_8x", None),
        ("resnet34_8x", None, "resnet18_8x", "its clone is resnet34_8x, but all of the suite's are resnet18_8x"),
        ("lenet5", "digits", None, "its pool digits is the target's own data, which makes it an upper bound"),
    ],
)
def test_a_submitted_attack_has_the_suite_s_clone_and_images_that_are_not_the_target_s(
    board, clone, pool, of_all, reason
):
    (table,) = suite().tables
    write_suites(suites.FOLDER, suite().model_copy(update={"tables": (table.model_copy(update={"clone": of_all}),)}))
    plain = column("crowbar")
    (setting,) = plain.settings
    columns = (plain.model_copy(update={"settings": (setting.model_copy(update={"clone": clone, "pool": pool}),)}),)
    tables = (TableColumns(target="digits/lenet5", budget=20_000, columns=columns),)
    text = ENTRY.replace('name = "blend"', 'name = "crowbar"').replace('defense = "blend"', 'attack = "crowbar"')
    write_entry(board, AttackEntry(name="crowbar", tables=tables), text)
    (told,) = problems(board)  # without its runs, at the least
    if reason is None:
        assert "none of its 6 runs" in told
    else:
        assert told == f"crowbar.toml: digits/lenet5, 20,000 queries: {reason}"


def test_a_score_of_which_runs_are_missing_is_not_called_published(board, make_record):
    columns = (column("crowbar", batch=64),)
    resolved = AttackEntry(
        name="crowbar", tables=(TableColumns(target="digits/lenet5", budget=20_000, columns=columns),)
    )
    text = ENTRY.replace('name = "blend"', 'name = "crowbar"').replace('defense = "blend"', 'attack = "crowbar"')
    submission = read_submission(write_entry(board, resolved, text))
    for info in runs_of(alone(suite(), submission)).values():
        Store(board / "results").save(record_of(make_record, info, right=800))
    record_files(board, "label_only/dualstudent")[0].unlink()
    (note,) = [note for note in check_board(board, "2026.1").notes if "of label_only" in note]
    assert note.startswith("crowbar steals ")
    assert note.endswith(" so far: runs are missing)")
