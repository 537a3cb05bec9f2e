"""The committed board is what its records say, byte for byte."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
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
    made = tmp_path / "docs" / "board"
    names = files_below(MADE)
    assert names == files_below(made)
    data = [f"{suite}/board.{kind}" for suite in ("smoke", "tiny") for kind in ("csv", "json", "md")]
    assert [name for name in names if not name.endswith(".svg")] == ["index.html", "records.html", *data]
    for name in names:
        if name.endswith(".svg"):
            assert words(made / name) == words(MADE / name), name
        else:
            assert (made / name).read_bytes() == (MADE / name).read_bytes(), name


def test_the_check_of_a_pull_request_compares_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "leaderboard.yml").read_text(encoding="utf-8"))
    assert "docs/board/**" in workflow[True]["pull_request"]["paths"]  # YAML reads `on` as a truth value
    scripts = [step.get("run", "") for step in workflow["jobs"]["check"]["steps"]]
    (script,) = [each for each in scripts if "leaderboard build" in each]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = [line for line in readme.splitlines() if line.startswith("msbench leaderboard build")]
    (tmp_path / "leaderboard" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, command.split()[1:], prog_name="msbench").exit_code == 0
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def run(name: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / name).mkdir()
        monkeypatch.setenv("RUNNER_TEMP", str(tmp_path / name))
        return subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, check=False)

    held = run("held")
    assert (held.returncode, held.stdout) == (0, f"{tmp_path / 'held' / 'made' / 'index.html'}\n"), held.stderr
    pages = tmp_path / "docs" / "board"
    (pages / "index.html").write_text((pages / "index.html").read_text() + "first")
    (pages / "mine.html").write_text("first")
    refused = run("refused")
    assert refused.returncode == 1
    told = [line.partition("\t")[2].rpartition("/")[2] for line in refused.stdout.splitlines() if "\t" in line]
    assert told == ["index.html", "mine.html"]
    assert "msbench leaderboard build makes it again" in Path("report.txt").read_text()


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def words(figure: Path) -> list[str]:
    """What is written in a figure: names, shares, legends. How it is drawn depends on the version of matplotlib."""
    found = re.findall("<!-- (.*?) -->", figure.read_text(encoding="utf-8"))
    assert len(found) > 20
    return found
