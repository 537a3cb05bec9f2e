"""What the program says about itself, and what it must not import to say it."""

import subprocess
import sys

import pytest
from msbench import __version__
from msbench.benchmark.cli.main import COMMANDS

HEAVY = ("torch", "pandas", "pydantic", "rich", "numpy", "sklearn", "matplotlib")


def test_help_lists_commands_and_exit_codes(call):
    result = call("--help")
    assert result.exit_code == 0
    for command, line in COMMANDS.items():
        assert f"  {command} " in result.stdout
        assert line.split()[0] in result.stdout
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "130"):
        assert f"\n    {code}" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    result = call(command, "--help")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Usage: msbench {command}")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "leaderboard"])
def test_a_command_s_own_help_begins_as_the_list_of_commands_says(call, command):
    text = " ".join(call(command, "--help").stdout.split())
    assert COMMANDS[command].rstrip(".") in text


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help"), ("list", "--help")])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\nfrom msbench.benchmark.cli.main import cli\n"
        f"try:\n    cli.main({list(arguments)!r}, 'msbench')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_version(call):
    assert call("--version").stdout == f"msbench {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("target",)])
def test_a_group_alone_shows_its_help_and_is_no_success(call, arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: msbench")


def test_unknown_command_names_the_nearest(refused):
    assert "did you mean run" in refused("rnu")


def test_unknown_option(refused):
    assert "--budgte" in refused("run", "--budgte", "1k")


def test_completion_of_names_does_not_import_torch():
    script = (
        "import os, sys\n"
        "os.environ |= {'_MSBENCH_COMPLETE': 'bash_complete', 'COMP_WORDS': 'msbench run --attack d',"
        " 'COMP_CWORD': '3'}\n"
        "from msbench.benchmark.cli.main import cli\n"
        "try:\n    cli.main([], 'msbench')\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plain,dfme" in done.stdout
    assert "plain,dualstudent" in done.stdout
