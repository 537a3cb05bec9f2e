"""The built wheel holds the package, all of it, and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules() -> set[str]:
    """Every source file of the checkout that is part of the package, as it should stand in the wheel."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = {name.partition(".")[2].replace(".", "/") for name in config["tool"]["setuptools"]["packages"]}
    found = set()
    for path in ROOT.rglob("*.py"):
        folder = path.relative_to(ROOT).parent
        hidden = any(part.startswith((".", "build", "dist", "tests")) for part in folder.parts)
        if not hidden and (path.parent / "__init__.py").is_file():
            assert folder.as_posix().removeprefix(".") in listed, f"{folder} is a package that pyproject.toml lacks"
            found.add((Path("msbench") / path.relative_to(ROOT)).as_posix())
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all files in a wheel built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "shared")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "dist").iterdir()
    assert path.name.startswith("model_stealing_bench-") and path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_only_the_package_and_its_metadata_are_in_the_wheel(wheel: list[str]) -> None:
    metadata = {name.partition("/")[0] for name in wheel} - {"msbench"}
    assert len(metadata) == 1
    assert metadata.pop().endswith(".dist-info")
    assert not [name for name in wheel if name.startswith("msbench/tests") or "test_" in name]
    assert not [name for name in wheel if "__pycache__" in name or name.endswith((".pyc", ".pt"))]


def test_every_module_is_in_the_wheel_and_no_other(wheel: list[str]) -> None:
    assert {name for name in wheel if name.endswith(".py")} == modules()


def test_files_that_are_no_modules_are_in_the_wheel(wheel: list[str]) -> None:
    data = {name for name in wheel if name.startswith("msbench/") and not name.endswith(".py")}
    assert {"msbench/py.typed", "msbench/benchmark/hyperparameters.toml", "msbench/leaderboard/schema.json"} <= data
    assert {f"msbench/benchmark/studies/{page}.toml" for page in ("attacks", "defenses")} <= data
    for suffix, folder in ((".toml", "benchmark/suites"), (".json", "leaderboard/suites")):
        there = {f"msbench/{folder}/{path.name}" for path in (ROOT / folder).glob(f"*{suffix}")}
        assert there and there <= data
    weights = {f"msbench/{path.relative_to(ROOT)}" for path in (ROOT / "targets" / "weights").rglob("*.*")}
    assert weights and weights == {name for name in data if name.startswith("msbench/targets/weights/")}
    assert {name for name in data if name.endswith(".safetensors")} <= weights
    assert {f"msbench/leaderboard/site/page.{ending}" for ending in ("html", "css", "js")} <= data


def test_the_license_and_the_entry_points_are_in_the_metadata(wheel: list[str]) -> None:
    metadata = {name.partition("/")[2] for name in wheel if not name.startswith("msbench/")}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= metadata
