"""A real third-party package: built, installed, found through its entry points, validated and run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from msbench import components
from msbench.benchmark.cli.main import cli
from msbench.components import load_class
from msbench.errors import ContractViolation
from msbench.leaderboard.store import Store

SOURCE = Path(__file__).with_name("plugin")
PACKAGE = SOURCE / "msbench_example_plugin"
PROGRAM = "from msbench.benchmark.cli.main import main; main()"

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed into it, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg*"))
    target = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PIP_ROOT_USER_ACTION": "ignore"})
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def process(installed: Path) -> Call:
    """Calls msbench in a process that sees the installed plugin, as ``process("list", "defenses")``."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        settings = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=os.environ | settings
        )
        assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.fixture
def call() -> Call:
    """Calls msbench in this process."""
    return lambda *arguments: CliRunner().invoke(cli, arguments, prog_name="msbench")


# ---------------------------------------------------------------------------------------------- as a package


def test_an_installed_defense_is_listed_and_keeps_its_contract(process: Call) -> None:
    rows = {row["name"]: row for row in json.loads(process("list", "defenses", "--json").stdout)}
    row = rows["example_halve"]
    assert row["origin"] == "msbench-example-plugin 0.3.0"
    assert row["knob"] == "share"
    assert row["summary"].startswith("Mix the probabilities with the uniform vector")
    assert rows["topk"]["origin"].startswith("model-stealing-bench ")
    checks = json.loads(process("validate", "defense", "example_halve:share=0.3", "--json").stdout)
    assert len(checks) > 5
    assert [check for check in checks if not check["passed"]] == []


def test_an_installed_attack_keeps_its_contract(process: Call) -> None:
    checks = json.loads(process("validate", "attack", "example_constants", "--json").stdout)
    assert len(checks) > 5
    assert [check for check in checks if not check["passed"]] == []


def test_an_installed_plugin_runs(process: Call, tmp_path: Path) -> None:
    spec = ["--defense", "topk:k=9+example_halve:share=0.2", "--attack", "example_constants:batch=32"]
    done = process("run", *spec, "--budget", "100", "--store", "runs", "--json")
    record = json.loads(done.stdout)
    assert record["status"] == "done"
    assert record["budget"] == {"limit": 100, "spent": 100, "stop": "budget spent"}
    assert record["spec"]["defense"]["name"] == "topk+example_halve"
    assert record["spec"]["defense"]["params"] == {"0.k": 9, "1.share": 0.2}
    assert record["spec"]["attack"]["params"] == {"batch": 32, "lr": 0.01}
    assert record["paid"]["argmax_changed"] == 0.0
    assert record["paid"]["l1"]["mean"] > 0.05
    # A reader of scores needs no plugin.
    assert [found.run_id for found in Store(tmp_path / "runs").records()] == [record["run_id"]]


def test_the_build_leaves_the_checkout_clean(installed: Path) -> None:
    assert (installed / "msbench_example_plugin" / "attack.py").is_file()
    assert {path.name for path in SOURCE.iterdir()} <= {"pyproject.toml", "msbench_example_plugin"}


# ----------------------------------------------------------------------------------------------- as single files


def test_single_files_run_by_path(call: Call, tmp_path: Path) -> None:
    spec = ["--defense", f"{PACKAGE / 'defense.py'}:Halve:share=0.2", "--attack", f"{PACKAGE / 'attack.py'}:Constants"]
    done = call("run", *spec, "--budget", "100", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["spec"]["defense"]["name"] == "defense.py:Halve"
    assert record["spec"]["attack"]["name"] == "attack.py:Constants"
    assert record["budget"]["spent"] == 100
    assert str(PACKAGE) not in done.stdout


@pytest.mark.parametrize(("kind", "name"), [("defense", "defense.py:Halve"), ("attack", "attack.py:Constants")])
def test_single_files_are_validated_by_path(call: Call, kind: str, name: str) -> None:
    done = call("validate", kind, f"{PACKAGE / name}")
    assert done.exit_code == 0, done.output
    assert "FAILED" not in done.output


def test_a_changed_file_is_another_run(tmp_path: Path) -> None:
    versions = set()
    for folder, change in (("a", ""), ("b", ""), ("c", "# Changed.\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "defense.py").write_text((PACKAGE / "defense.py").read_text() + change)
        versions.add(load_class("defense", f"{tmp_path / folder / 'defense.py'}:Halve").version)
    assert len(versions) == 2


# ------------------------------------------------------------------------------------------------ broken plugins


def pretend_installed(folder: Path, name: str, source: str, entry_points: str) -> None:
    """What an installer would leave in a folder: a module, and the metadata that names its entry points."""
    (folder / f"{name}.py").write_text(source)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Distributions whose entry points fail at import, are missing, or are no components, beside a good one."""
    folder = tmp_path / "broken"
    folder.mkdir()
    pretend_installed(
        folder,
        "msbench_crashing",
        "raise RuntimeError('no license key')",
        "[msbench.defenses]\ncrashing = msbench_crashing:Defense\n"
        "[msbench.attacks]\ncrashing = msbench_crashing:Attack\n",
    )
    pretend_installed(
        folder,
        "msbench_pretending",
        "class Stranger:\n    pass\n\nfrom msbench.defenses.topk import TopK\n",
        "[msbench.defenses]\nstranger = msbench_pretending:Stranger\nabsent = msbench_pretending:Nobody\n"
        "[msbench.attacks]\nmistaken = msbench_pretending:TopK\n",
    )
    shutil.copytree(PACKAGE, folder / "msbench_example_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    pretend_installed(
        folder, "msbench_good", "", "[msbench.defenses]\nexample_halve = msbench_example_plugin.defense:Halve\n"
    )
    monkeypatch.syspath_prepend(folder)
    components._entry_points.cache_clear()
    before = set(sys.modules)
    yield
    components._entry_points.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("msbench_"):
            del sys.modules[name]


BROKEN_DEFENSES = {
    "crashing": "defense 'crashing' cannot be imported: RuntimeError: no license key",
    "stranger": "defense 'stranger' does not derive from msbench.Defense",
    "absent": "defense 'absent' cannot be imported: AttributeError: "
    "module 'msbench_pretending' has no attribute 'Nobody'",
}


@pytest.mark.usefixtures("broken")
@pytest.mark.filterwarnings("always")
def test_a_broken_plugin_is_a_line_of_warning_and_the_others_are_listed(call: Call) -> None:
    done = call("list", "defenses", "--json")
    assert done.exit_code == 0, done.stderr
    listed = {row["name"] for row in json.loads(done.stdout)}
    assert {"topk", "label_only", "example_halve"} <= listed
    assert not listed & BROKEN_DEFENSES.keys()
    assert sorted(done.stderr.splitlines()) == sorted(f"warning: {text}" for text in BROKEN_DEFENSES.values())


@pytest.mark.usefixtures("broken")
def test_broken_plugins_do_not_keep_others_from_running(call: Call) -> None:
    given = ["--attack", "random_noise:batch=50", "--budget", "50", "-q", "--json"]
    done = call("run", "--defense", "example_halve", *given)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["spec"]["defense"]["name"] == "example_halve"
    assert done.stderr == ""  # nothing was asked of the broken ones


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", BROKEN_DEFENSES)
def test_a_broken_plugin_that_is_asked_for_is_an_error_that_names_it(call: Call, name: str) -> None:
    done = call("run", "--defense", name, "--budget", "50")
    assert done.exit_code == 1
    assert done.stderr == f"Error: {BROKEN_DEFENSES[name]}\n"


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("name", "words"), [("mistaken", "does not derive from msbench.Attack"), ("crashing", "no license key")]
)
def test_a_component_of_another_kind_is_named(name: str, words: str) -> None:
    with pytest.raises(ContractViolation, match=words):
        load_class("attack", name)


@pytest.mark.usefixtures("broken")
@pytest.mark.filterwarnings("always")
def test_two_packages_that_offer_one_name_are_a_warning(tmp_path: Path, call: Call) -> None:
    pretend_installed(tmp_path / "broken", "msbench_rival", "", "[msbench.recoveries]\nargmax = msbench_rival:Other\n")
    components._entry_points.cache_clear()
    done = call("list", "recoveries", "--json")
    assert done.exit_code == 0
    assert "two packages offer the recovery 'argmax'" in done.stderr
    names: list[Any] = [row["name"] for row in json.loads(done.stdout)]
    assert "averaging" in names
