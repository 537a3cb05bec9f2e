"""What may be written into an entry, and what may not."""

import json
import re

import pytest
from msbench.errors import UsageError
from msbench.leaderboard.entries import AttackEntry, TableColumns, read_entry, read_submission, submissions

from .tiny_board import ENTRY, column, component, defense, write_entry

BLEND = defense("blend", "blend:share=0.1", "blend:share=0.9")


def with_line(line):
    """The entry with one line replaced by another of the same key, or with a line more."""
    key = line.partition(" =")[0]
    kept = [old for old in ENTRY.splitlines() if old.partition(" =")[0] != key]
    return "\n".join([*kept, line]) + "\n"


def test_an_entry_is_read_with_what_it_resolved_to(tmp_path):
    write_entry(tmp_path, BLEND)
    (submission,) = submissions(tmp_path / "entries")
    assert (submission.entry.name, submission.entry.kind, submission.entry.spec) == ("blend", "defense", "blend")
    assert submission.entry.authors == ("Ada Lovelace", "Alan Turing")
    assert submission.resolved == BLEND


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('name = "<script>alert(1)</script>"', "name: String should match"),
        ('name = "../../etc/passwd"', "name: String should match"),
        ('name = "a/b"', "name: String should match"),
        ('name = ""', "name: String should match"),
        ('title = ""', "title: String should have at least 1"),
        ('title = "two\\nlines"', "title: only printable characters"),
        ('title = "\\u202Egnp.exe"', "title: only printable characters"),
        ('title = "two\\u2028lines"', "title: only printable characters"),
        ("authors = []", "authors: Tuple should have at least 1"),
        ('authors = "Ada"', "authors: "),
        ("title = 7", "title: Input should be a valid string"),
        ('date = "yesterday"', "date: "),
        ('code = "javascript:alert(1)"', "code: String should match"),
        ('code = "https://x.org/\\"onclick="', "code: String should match"),
        ('defense = "/home/me/blend.py:Blend"', "defense: a file is named by a path below"),
        ('defense = "../blend.py:Blend"', "defense: a file is named by a path below"),
        ('attack = "dfme"', "give one of the two"),
        ('access = ["telepathy"]', "access.0: Input should be"),
        ('access = ["auxiliary"]', "name them in auxiliary"),
        ('partial = "yes"', "partial: Input should be a valid boolean"),
        ('ranking = "first"', "ranking: Extra inputs are not permitted"),
        ("paper = {title = 'Blend'}", "paper: a paper needs url or arxiv"),
        ("paper = {title = 'Blend', arxiv = '23x'}", "paper.arxiv: String should match"),
    ],
)
def test_what_an_entry_cannot_say_is_refused_in_one_line(tmp_path, line, reason):
    path = tmp_path / "blend.toml"
    path.write_text(with_line(line))
    with pytest.raises(UsageError) as caught:
        read_entry(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_with_markup_is_text(tmp_path):
    path = tmp_path / "blend.toml"
    path.write_text(with_line('title = "<script>alert(1)</script>"'))
    assert read_entry(path).title == "<script>alert(1)</script>"


def test_no_toml_is_a_usage_error(tmp_path):
    path = tmp_path / "blend.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is no TOML"):
        read_entry(path)


@pytest.mark.parametrize(
    ("resolved", "text", "reason"),
    [
        (BLEND.model_copy(update={"needs": ("data",)}), ENTRY, "needs data, but declares nothing"),
        (BLEND.model_copy(update={"family": "control"}), ENTRY, "controls are the suite's own"),
        (BLEND.model_copy(update={"stochastic": True}), ENTRY, "family is deterministic, but it is stochastic"),
        (BLEND.model_copy(update={"family": "randomized"}), ENTRY, "family is randomized, but it is not stochastic"),
        (defense("blend", "topk:k=3"), ENTRY, "settings.0: topk:k=3 is none of the settings of blend"),
        (defense("blend", "blender:share=0.1"), ENTRY, "is none of the settings of blend"),
        (defense("blend", "blend:share=0.1,other=1"), ENTRY, "is none of the settings of blend"),
        (BLEND, with_line('defense = "blend:share=0.5"'), "is none of the settings of blend:share=0.5"),
        (BLEND, with_line('access = ["data"]'), "needs nothing, but declares data"),
        (BLEND.model_copy(update={"name": "other"}), ENTRY, "must be called"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, resolved, text, reason):
    path = write_entry(tmp_path, resolved, text)
    with pytest.raises(UsageError, match=reason):
        read_submission(path)


def test_a_missing_or_edited_json_is_refused(tmp_path):
    path = write_entry(tmp_path, BLEND)
    beside = path.with_suffix(".json")
    data = json.loads(beside.read_text())
    beside.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="not in canonical form"):
        read_submission(path)
    beside.write_text(json.dumps(data | {"rank": 1}))
    with pytest.raises(UsageError, match=r"rank: Extra inputs"):
        read_submission(path)
    beside.unlink()
    with pytest.raises(UsageError, match="cannot read"):
        read_submission(path)


# --------------------------------------------------------------------------------------- what an entry resolved to


def with_setting(spec, resolved):
    """The entry's defense with this setting alone."""
    (setting, _) = BLEND.settings
    return BLEND.model_copy(update={"settings": (setting.model_copy(update={"spec": spec, "resolved": resolved}),)})


@pytest.mark.parametrize(
    ("spec", "resolved", "reason"),
    [
        ("blend:share=0.1", component("blend", share=0.1), None),
        ("blend:share=.10", component("blend", share=0.1, other=3), None),
        ("blend:share=1", component("blend", share=1.0), None),
        ("blend:share=True", component("blend", share=True), None),
        ("blend:share=none", component("blend", share=None), None),
        ("blend:share=0.9", component("blend", share=0.1), "blend:share=0.9 has resolved to share=0.1"),
        ("blend:share=1.5", component("blend", share=1), "has resolved to share=1"),
        ("blend:share=0.9", component("blend", share=None), "has resolved to share=None"),
        ("blend:share=0.9", component("blend"), "blend:share=0.9 lacks share"),
        ("blend:share=0.9", component("none", share=0.9), "cannot have resolved to none"),
        ("blend:share", component("blend:share"), "is none of the settings of blend"),
    ],
)
def test_a_setting_resolves_to_what_it_writes(tmp_path, spec, resolved, reason):
    path = write_entry(tmp_path, with_setting(spec, resolved))
    if reason is None:
        assert read_submission(path).resolved.settings[0].spec == spec
    else:
        with pytest.raises(UsageError, match=f"settings.0: .*{reason}"):
            read_submission(path)


@pytest.mark.parametrize(
    ("resolved", "holds"),
    [
        (component("blend.py:Blend+topk", **{"0.share": 0.1, "1.k": 3, "1.exact": False}), True),
        (component("blend.py:Blend+topk", **{"0.share": 0.1, "1.k": 1}), False),
        (component("blend.py:Blend+topk", **{"1.share": 0.1, "0.k": 3}), False),
        (component("topk+blend.py:Blend", **{"0.share": 0.1, "1.k": 3}), False),
        (component("sub/blend.py:Blend+topk", **{"0.share": 0.1, "1.k": 3}), False),
    ],
)
def test_the_links_of_a_chain_resolve_to_what_they_write(tmp_path, resolved, holds):
    spec = "sub/blend.py:Blend:share=0.1+topk:k=3"
    resolved = resolved.model_copy(update={"version": "1+0123abcd+1"})
    path = write_entry(tmp_path, with_setting(spec, resolved), with_line(f'defense = "{spec}"'))
    if holds:
        assert read_submission(path).resolved.settings[0].resolved == resolved
    else:
        with pytest.raises(UsageError, match=r"settings\.0: .* resolved to|lacks"):
            read_submission(path)


@pytest.mark.parametrize(
    ("spec", "version", "holds"),
    [
        ("blend.py:Blend", "1+0123abcd", True),
        ("blend.py:Blend", "1", False),
        ("blend.py:Blend", "1+0123ABCD", False),
        ("blend.py:Blend", "1+0123abcde", False),
        ("blend", "1", True),
        ("blend+blend.py:Blend", "2+1+0123abcd", True),
        ("blend+blend.py:Blend", "1+0123abcd+2", False),
        ("blend.py:Blend+blend", "1+0123abcd+2", True),
        ("blend.py:Blend+blend", "1+0123abcd", False),
    ],
)
def test_the_version_of_a_file_tells_which_file_it_was(tmp_path, spec, version, holds):
    resolved = component(spec).model_copy(update={"version": version})
    path = write_entry(tmp_path, with_setting(spec, resolved), with_line(f'defense = "{spec}"'))
    if holds:
        assert read_submission(path).resolved.settings[0].resolved.version == version
    else:
        with pytest.raises(
            UsageError, match=rf"{re.escape(spec)} cannot have version .* eight digits of the file's SHA"
        ):
            read_submission(path)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (component("blend", share=0.9, cap=1), None),
        (component("blend", share=0.1, cap=1), "settings.1: blend:share=0.1 is there twice: leave it out"),
        (component("blend", share=0.9, cap=2), "settings.1: cap is 2, but 1 in settings.0, .*, which is share"),
        (component("blend", share=0.9), "settings.1: cap is None, but 1 in settings.0"),
        (
            component("blend", share=0.9, cap=1).model_copy(update={"version": "2"}),
            "settings.1: its version is 2, but that of settings.0 is 1",
        ),
    ],
)
def test_nothing_but_the_knob_tells_settings_apart(tmp_path, other, reason):
    spec = f"blend:share={other.params['share']}"
    (first,) = with_setting("blend:share=0.1", component("blend", share=0.1, cap=1)).settings
    second = first.model_copy(update={"spec": spec, "resolved": other})
    path = write_entry(tmp_path, BLEND.model_copy(update={"settings": (first, second)}))
    if reason is None:
        assert len(read_submission(path).resolved.settings) == 2
    else:
        with pytest.raises(UsageError, match=reason):
            read_submission(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"summary": "Mixes.\n::error file=board.md::ranked"},
        {"weakness": "\x1b[31mnone"},
        {"citation": "gnp\u202eexe"},
        {"settings": with_setting("blend\n::error::x", component("blend")).settings},
        {"settings": with_setting("blend:share=\x1b[2J", component("blend", share="\x1b[2J")).settings},
        {"settings": with_setting("blend", component("blend", **{"a\nb": 1})).settings},
    ],
)
def test_every_text_of_what_an_entry_resolved_to_is_one_line(tmp_path, changes):
    path = write_entry(tmp_path, BLEND.model_copy(update=changes))
    with pytest.raises(UsageError, match="only printable characters, all on one line") as caught:
        read_submission(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (column("dfme", batch=32), "its attack is dfme, the entry's maze:batch=64"),
        (column("maze:batch=64", batch=32), "maze:batch=64 cannot have resolved to maze:batch=64"),
        (column("maze:batch=64", "argmax", batch=64), "cannot have resolved"),
    ],
)
def test_an_attack_resolves_to_what_it_writes(tmp_path, changed, reason):
    text = ENTRY.replace('defense = "blend"', 'attack = "maze:batch=64"')

    def entry_of(*columns):
        tables = (TableColumns(target="digits/lenet5", budget=1, columns=columns),)
        return write_entry(tmp_path, AttackEntry(name="blend", tables=tables), text)

    (setting,) = column("maze", batch=64).settings
    right = column("maze").model_copy(update={"attack": "maze:batch=64", "settings": (setting,)})
    assert read_submission(entry_of(right)).resolved.tables[0].columns == (right,)
    with pytest.raises(UsageError, match=reason):
        read_submission(entry_of(changed))
    with pytest.raises(UsageError, match="its recoveries are not the entry's, none"):
        read_submission(entry_of(right, right))
    newer = setting.model_copy(update={"attack": setting.attack.model_copy(update={"version": "2"})})
    with pytest.raises(UsageError, match="the version of maze:batch=64 is 2, but 1 before"):
        read_submission(entry_of(right.model_copy(update={"settings": (setting, newer)})))
    other = setting.model_copy(update={"attack": component("maze", batch=32)})
    with pytest.raises(UsageError, match="maze:batch=64 has resolved to batch=32"):
        read_submission(entry_of(right.model_copy(update={"settings": (setting, other)})))
