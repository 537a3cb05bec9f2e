"""What may be written into an entry, and what may not."""

import json

import pytest
from msbench.errors import UsageError
from msbench.leaderboard.entries import read_entry, read_submission, submissions

from .tiny_board import ENTRY, defense, write_entry

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
        (defense("blend", "topk:k=3"), ENTRY, "settings that are none of blend"),
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
