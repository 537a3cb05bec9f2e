"""The program as a user meets it: real processes and real runs, kept small."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

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
    return subprocess.run([*PROGRAM, *args], capture_output=True, text=True, env=os.environ | env, timeout=100)


def test_a_target_is_trained_once(call):
    first = call("target", "train", "digits/lenet5")
    assert first.exit_code == 0, first.output
    assert "epoch" in first.stderr
    assert "accuracy 9" in first.stdout
    again = call("target", "train", "digits/lenet5")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    [row] = json.loads(call("target", "list", "--json").stdout)
    assert row["name"] == "digits/lenet5"
    assert call("target", "train", "digits/lenet6").exit_code == 2


def test_a_run_is_done_once(call):
    small = ["run", "--attack", "random_noise", "--budget", "300", "--target", "digits/*", "--json"]
    call("target", "train", "-q", "digits/lenet5")
    first, again = call(*small), call(*small)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["budget"]["spent"] == 300
    assert "spent 300/300  accuracy" in first.stderr
    assert again.stdout == first.stdout
    assert json.loads(call(*small, "--dry-run").stdout)["cached"] == 1


def test_a_broken_defense_fails_its_run_in_one_line(call, tmp_path):
    (tmp_path / "logits.py").write_text(LOGITS)
    result = call("run", "-q", "--defense", "logits.py:Logits", "--attack", "random_noise", "--budget", "300")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: run ")
    assert "softmax" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads(next((tmp_path / "runs").rglob("*.json")).read_text())["status"] == "failed"


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_interrupted_run_keeps_its_state(call):
    long = ["run", "--attack", "random_noise", "--budget", "5M"]
    process = subprocess.Popen([*PROGRAM, *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hurry = threading.Timer(100, process.kill)
    hurry.start()
    assert process.stderr is not None
    shown = [line for line in iter(process.stderr.readline, "") if _signalled_at_a_milestone(process, line)]
    process.communicate()
    hurry.cancel()
    assert process.returncode == 130, shown
    assert shown[-1].startswith("Interrupted: ")
    assert json.loads(call(*long, "--dry-run", "--json").stdout)["unfinished"] == 1


def _signalled_at_a_milestone(process, line):
    if line.startswith("spent"):
        process.send_signal(signal.SIGINT)
    return True


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
