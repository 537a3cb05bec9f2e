"""Where an option's value comes from: command line, environment, file, default, in that order."""

import json
import tomllib
from collections.abc import Iterator

import click
import pytest
from msbench.benchmark.cli.main import cli, variable_of


def dumped(result):
    assert result.exit_code == 0, result.output
    return tomllib.loads(result.stdout)


def test_defaults(call):
    config = dumped(call("run", "--print-config"))
    assert config["target"] == ["digits/lenet5"]
    assert config["attack"] == ["dualstudent"]
    assert config["budget"] == [60_000]
    assert config["seed"] == [0]
    assert config["store"] == "runs"
    assert config["download"] is True


def test_file(call, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('attack = ["dfme", "knockoff"]\nbudget = "20k"\nseed = [0, "3-4"]\ndefense_seed = 1\njson = true\n')
    config = dumped(call("run", "-c", str(file), "--print-config"))
    assert config["attack"] == ["dfme", "knockoff"]
    assert config["budget"] == [20_000]
    assert config["seed"] == [0, 3, 4]
    assert config["defense-seed"] == [1]
    assert config["json"] is True


def test_environment_beats_file_and_command_line_beats_both(call, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('attack = "dfme"\nbudget = 100\nclone = "lenet5"\n')
    env = {"MSBENCH_RUN_ATTACK": "knockoff random_noise", "MSBENCH_RUN_BUDGET": "200"}
    config = dumped(call("run", "-c", str(file), "--budget", "300", "--print-config", **env))
    assert config["attack"] == ["knockoff", "random_noise"]
    assert config["budget"] == [300]
    assert config["clone"] == "lenet5"


@pytest.mark.parametrize(
    ("variable", "key"),
    [("MSBENCH_STORE", "store"), ("MSBENCH_RUN_STORE", "store"), ("MSBENCH_DATA", "data-dir")],
)
def test_folders_from_the_environment(call, variable, key):
    assert dumped(call("run", "--print-config", **{variable: "elsewhere"}))[key] == "elsewhere"


def test_flags_from_the_environment(call):
    config = dumped(call("run", "--print-config", MSBENCH_RUN_FORCE="1", MSBENCH_DOWNLOAD="0"))
    assert config["force"] is True
    assert config["download"] is False


def test_every_option_has_a_variable(call):
    config = dumped(call("run", "--print-config"))
    given = {"clone": "lenet5", "pool": "patches", "precision": "fp32", "device": "cpu", "quiet": "1"}
    env = {f"MSBENCH_RUN_{key.upper()}": value for key, value in given.items()}
    changed = dumped(call("run", "--print-config", **env))
    assert {key for key in changed if changed.get(key) != config.get(key)} == set(given)


def commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix}_{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}_{name}")


def test_each_variable_is_called_as_its_option_whatever_the_code_calls_it() -> None:
    found = {
        variable
        for prefix, command in commands(cli, "MSBENCH")
        for option in command.params
        if isinstance(option, click.Option)
        for variable in [variable_of(option, prefix)]
        if variable in (option.envvar or ())
    }
    assert {"MSBENCH_RUN_COMPILE", "MSBENCH_RUN_JSON", "MSBENCH_SWEEP_DEFENSE", "MSBENCH_SWEEP_SEED"} <= found
    assert {"MSBENCH_LEADERBOARD_SHOW_FORMAT", "MSBENCH_LEADERBOARD_BUILD_SUITE", "MSBENCH_NEW_DIR"} <= found


def test_variables_of_renamed_options(call):
    assert dumped(call("run", "--print-config", MSBENCH_RUN_COMPILE="off"))["compile"] == "off"
    planned = call("sweep", "smoke", "--dry-run", "--json", MSBENCH_SWEEP_DEFENSE="topk", MSBENCH_SWEEP_SEED="0")
    assert planned.exit_code == 0, planned.output
    everything = call("sweep", "smoke", "--dry-run", "--json")
    assert 0 < len(json.loads(planned.stdout)["runs"]) < len(json.loads(everything.stdout)["runs"]) / 10


def test_what_is_printed_can_be_read_back(call, tmp_path):
    first = call("run", "--seed", "0-2", "--attack", 'dfme:lr="é"', "--data-dir", "a b", "--print-config")
    file = tmp_path / "run.toml"
    file.write_text(first.stdout, encoding="utf-8")
    assert call("run", "-c", str(file), "--print-config").stdout == first.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("atack = 'dfme'", "did you mean attack"),
        ("budget = 'abc'", "'abc'"),
        ("budget = 1.5", "'1.5'"),
        ("budget = true", "'True'"),
        ("device = ['cpu', 'cuda']", "device"),
        ("[attack]\nname = 'dfme'", "attack"),
        ("force = 'perhaps'", "force"),
        ("print-config = true", "print-config"),
        ("attack = ", "is not a TOML file"),
    ],
)
def test_unusable_file(refused, tmp_path, text, told):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert told in refused("run", "-c", str(file), "--print-config")


def test_absent_file_and_folder_for_a_file(refused, tmp_path):
    assert "nowhere.toml" in refused("run", "-c", "nowhere.toml")
    assert str(tmp_path) in refused("run", "-c", str(tmp_path))
