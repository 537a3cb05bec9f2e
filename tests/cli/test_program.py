"""The program as a user meets it: real processes and real runs, kept small."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

posix = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")

UNTRAINED = "digits/lenet5:hidden=32"
"""A target that does not come with msbench."""
PROGRAM = [sys.executable, "-c", "from msbench.benchmark.cli.main import main; main()"]

LOGITS = '''
from dataclasses import dataclass
from typing import ClassVar

from msbench import Defense, Traits


@dataclass(kw_only=True)
class Logits(Defense):
    """Forgets the softmax."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True)

    def release(self, probs, images):
        return probs.log()
'''


def program(*args, **env):
    """Run it to its end."""
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run([*PROGRAM, *args], capture_output=True, encoding=encoding, env=os.environ | env, timeout=100)


def test_signs_that_an_encoding_lacks_are_escaped_and_no_error(tmp_path):
    small = ["run", "--attack", "random_noise", "--budget", "300", "--store", str(tmp_path)]
    for arguments in (small, ["leaderboard", "show", "--store", str(tmp_path)]):
        done = program(*arguments, PYTHONIOENCODING="latin-1")
        assert (done.returncode, "Error" in done.stderr) == (0, False)
        assert r"\u03" in done.stdout  # an epsilon in the one, a sigma in the other


def test_a_target_is_trained_once(call, monkeypatch, tmp_path):
    monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / "untrained"))
    first = call("target", "train", UNTRAINED)
    assert first.exit_code == 0, first.output
    assert "epoch" in first.stderr
    assert "accuracy 9" in first.stdout
    again = call("target", "train", UNTRAINED)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    listed = json.loads(call("target", "list", "--json").stdout)
    assert [row["name"] for row in listed if row["trained"] == "here"] == [UNTRAINED]
    assert {row["trained"] for row in listed if row["name"] == "digits/lenet5"} == {"msbench"}
    assert call("target", "train", "digits/lenet6").exit_code == 2


def test_a_run_is_done_once(call):
    small = ["run", "--attack", "random_noise", "--budget", "300", "--target", "digits/*5", "--json"]
    first, again = call(*small), call(*small)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["budget"]["spent"] == 300
    assert "spent 300/300  accuracy" in first.stderr
    assert again.stdout == first.stdout
    assert json.loads(call(*small, "--dry-run").stdout)["cached"] == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_budget():
    peaks = []
    for budget in ("1k", "4k"):
        done = program("run", "-q", "--json", "--budget", budget, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout)["timing"]["peak_memory"])
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 1.6e9  # most of which is torch itself


def test_a_broken_defense_fails_its_run_in_one_line(call, tmp_path):
    (tmp_path / "logits.py").write_text(LOGITS)
    result = call("run", "-q", "--defense", "logits.py:Logits", "--attack", "random_noise", "--budget", "300")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: run ")
    assert "softmax" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads(next((tmp_path / "runs").rglob("*.json")).read_text())["status"] == "failed"


def stopped(*args, at, number=signal.SIGINT):
    """Signal the program as soon as a line of stderr begins with ``at``, and return all its lines."""
    process = subprocess.Popen([*PROGRAM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hurry = threading.Timer(100, process.kill)
    hurry.start()
    assert process.stderr is not None
    shown = []
    for line in iter(process.stderr.readline, ""):
        if line.startswith(at) and not any(earlier.startswith(at) for earlier in shown):
            process.send_signal(number)
        shown.append(line)
    process.communicate()
    hurry.cancel()
    assert process.returncode == 130, shown
    return shown


@posix
def test_interrupted_run_keeps_its_state(call):
    long = ["run", "--attack", "random_noise", "--budget", "5M"]
    assert stopped(*long, at="spent")[-1].startswith("Interrupted: ")
    assert json.loads(call(*long, "--dry-run", "--json").stdout)["unfinished"] == 1


@posix
@pytest.mark.parametrize(
    ("command", "number"),
    [(["run", "--target", UNTRAINED], signal.SIGTERM), (["target", "train", UNTRAINED], signal.SIGINT)],
)
def test_the_first_signal_ends_the_training_of_a_target(monkeypatch, tmp_path, command, number):
    monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / "untrained"))
    shown = stopped(*command, at="epoch", number=number)
    assert shown[-1].startswith("Interrupted: stopped before the target was ready; nothing of it is kept")
    assert not any(line.startswith("epoch 60/60") for line in shown)
    left = [path for path in (tmp_path / "untrained").rglob("*") if path.is_file()]
    assert all(path.suffix == ".lock" for path in left), "at most what kept others from training it meanwhile"


def test_a_broken_plugin_is_a_warning(tmp_path):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[msbench.recoveries]\nbroken = no_such_module:Thing\n")
    done = program("list", "recoveries", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert "averaging" in done.stdout
    assert done.stderr.startswith("warning: recovery 'broken' cannot be imported")
    assert done.stderr.count("\n") == 1


def test_a_usage_error_of_the_real_program():
    done = program("run", "--budget", "lots")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: budget 'lots' is not usable: give a whole number of queries such as 60000, 60k or 2M\n"
    )
