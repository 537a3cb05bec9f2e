"""The committed board is what its records say, byte for byte."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from msbench.benchmark.cli.main import cli

ROOT = Path(__file__).parents[2]
MADE = ROOT / "docs" / "board"


def test_the_command_of_the_readme_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = [line for line in readme.splitlines() if line.startswith("msbench leaderboard build")]
    for folder in ("results", "entries"):
        if (ROOT / "leaderboard" / folder).is_dir():
            shutil.copytree(ROOT / "leaderboard" / folder, tmp_path / "leaderboard" / folder)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, command.split()[1:], prog_name="msbench")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in MADE.glob("*.*"))
    assert names == ["board.csv", "board.json", "board.md", "index.html", "records.html"]
    made = tmp_path / "docs" / "board"
    for name in names:
        assert (made / name).read_bytes() == (MADE / name).read_bytes(), name
    figures = sorted(path.name for path in (MADE / "figures").iterdir())
    assert figures == sorted(path.name for path in (made / "figures").iterdir())
    for name in figures:
        assert words(made / "figures" / name) == words(MADE / "figures" / name), name


def words(figure: Path) -> list[str]:
    """What is written in a figure: names, shares, legends. How it is drawn depends on the version of matplotlib."""
    found = re.findall("<!-- (.*?) -->", figure.read_text(encoding="utf-8"))
    assert len(found) > 20
    return found
