"""What ``msbench new`` writes validates, runs and passes its own test as it stands, and overwrites nothing."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msbench.benchmark.cli.main import cli
from msbench.benchmark.validate_attack import validate_attack
from msbench.benchmark.validate_defense import validate_defense

VALIDATE = {"defense": validate_defense, "attack": validate_attack}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="msbench")


@pytest.mark.parametrize("kind", VALIDATE)
def test_what_is_written_validates(kind: str, tmp_path: Path) -> None:
    done = call("new", kind, "blue_moon")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "blue_moon"
    assert sorted(map(Path, done.stdout.split())) == sorted(
        path.relative_to(tmp_path) for path in folder.iterdir() if path.is_file()
    )
    checks = VALIDATE[kind]("blue_moon/msbench_blue_moon.py:BlueMoon")
    assert [check for check in checks if not check.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", VALIDATE)
def test_its_own_test_passes(kind: str, tmp_path: Path) -> None:
    call("new", kind, "blue_moon")
    folder = tmp_path / "blue_moon"
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize("kind", VALIDATE)
def test_the_package_offers_what_its_module_defines(kind: str, tmp_path: Path) -> None:
    call("new", kind, "blue_moon", "--dir", "deep/down")
    folder = tmp_path / "deep" / "down" / "blue_moon"
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "msbench-blue-moon"
    assert project["project"]["entry-points"][f"msbench.{kind}s"] == {"blue_moon": "msbench_blue_moon:BlueMoon"}
    assert project["tool"]["setuptools"]["py-modules"] == ["msbench_blue_moon"]
    assert "class BlueMoon(" in (folder / "msbench_blue_moon.py").read_text()
    assert not [path.name for path in folder.iterdir() if "$" in path.read_text()]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("years of work")
    refused = call("new", "defense", "mine")
    assert refused.exit_code == 2
    assert "mine is there already: nothing was written" in refused.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


@pytest.mark.parametrize("name", ["Blue", "../up", "a b", "1st", "a__b", "a_", "class", "", "topk", "<script>"])
def test_names_that_cannot_be_one_or_are_taken_are_refused(name: str, tmp_path: Path) -> None:
    refused = call("new", "defense", name)
    assert refused.exit_code == 2
    assert "already" in refused.stderr if name == "topk" else "is not usable" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [("attack", "none"), ("attack", "true"), ("attack", "f"), ("attack", "attack"), ("defense", "tensor")],
)
def test_names_that_would_hide_what_the_package_needs_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    refused = call("new", kind, name)
    assert refused.exit_code == 2
    assert f"name '{name}' is not usable" in refused.stderr or "already" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("brief")
def test_the_defense_that_is_written_runs() -> None:
    call("new", "defense", "blue_moon")
    spec = "blue_moon/msbench_blue_moon.py:BlueMoon:share=0.2"
    done = call("run", "--defense", spec, "--attack", "random_noise:batch=50", "--budget", "50", "-q", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["spec"]["defense"]["params"] == {"share": 0.2}
