"""``msbench run`` around the runner: grids, exit codes, and what goes to which stream."""

import json

import pytest
from msbench.benchmark.spec import RunSpec
from msbench.errors import Interrupted, MissingData
from msbench.leaderboard.store import Store


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--attack", "dualstuden"], "did you mean dualstudent"),
        (["--attack", "dfme:bogus=1"], "'bogus'"),
        (["--attack", "dfme", "--attack", "mazze"], "mazze"),
        (["--attack", "zz*"], "no name matches"),
        (["--defense", "topk:k=three"], "k='three'"),
        (["--defense", "topk:k=0"], "k=0"),
        (["--defense", "topk:k"], "topk"),
        (["--defense", ""], "empty component"),
        (["--defense", "nowhere.py:Mine"], "nowhere.py"),
        (["--recovery", "argmx"], "argmax"),
        (["--target", "digits"], "DATASET/ARCHITECTURE"),
        (["--target", "digit/lenet5"], "digits"),
        (["--target", "digits/lenet6"], "lenet5"),
        (["--target", "digits/lenet5:width"], "'width' in 'lenet5:width' is not key=value: write width=VALUE"),
        (["--target", "digits/lenet5:width,hidden=32"], "'width' in 'lenet5:width,hidden=32' is not key=value"),
        (["--target", "nothing/*"], "trained target"),
        (["--clone", "lenet6"], "lenet5"),
        (["--clone", "lenet5:16"], "'16' in 'lenet5:16' is not key=value"),
        (["--pool", "patches", "--attack", "dfme"], "attack dfme is data-free: it takes no --pool"),
        (["--pool", "patches", "--attack", "random_noise", "--attack", "dfme"], "takes no --pool"),
        (["--pool", "pathces", "--attack", "knockoff"], "did you mean patches"),
        (["--budget", "abc"], "'abc'"),
        (["--budget", "0"], "'0'"),
        (["--budget", "-5"], "'-5'"),
        (["--budget", "1.5"], "'1.5'"),
        (["--seed", "2-0"], "'2-0'"),
        (["--defense-seed", "-1"], "'-1'"),
        (["--precision", "fp16"], "fp16"),
        (["--device", "abacus"], "'abacus'"),
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
        (["surplus"], "surplus"),
    ],
)
def test_unusable_arguments(refused, fake, arguments, told):
    assert told in refused("run", *arguments)
    assert fake.calls == []


def test_runs_that_take_turns(call, fake):
    result = call("run", "--seed", "0-4", "--at-once", "2", "--budget", "300")
    assert result.exit_code == 0, result.output
    assert fake.groups == [2, 2, 1]
    assert [spec.seed for spec in fake.specs] == [0, 1, 2, 3, 4]
    assert result.stdout.count("agreement") >= 5
    assert "5 of 5 runs done" in result.stderr


def test_store_that_is_a_file(refused, fake, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "taken" in refused("run", "--store", "taken")
    assert "taken" in refused("run", "--store", "taken/below")
    assert fake.calls == []


def test_one_run(call, fake, tmp_path):
    result = call("run", "--budget", "300", "--data-dir", "data", "--no-download", "--device", "cpu", "--force")
    assert result.exit_code == 0, result.output
    [(spec, options)] = fake.calls
    assert spec == RunSpec(budget=300)
    assert options["data_dir"].name == "data"
    assert (options["download"], options["device"], options["force"]) == (False, "cpu", True)
    assert "agreement" in result.stdout
    assert "attacking" in result.stderr
    assert list((tmp_path / "runs").rglob("*.json"))


def test_grid_is_run_in_order(call, fake):
    axes = [
        "--attack",
        "dfm[e]*",
        "--attack",
        "random_noise",
        "--budget",
        "1k",
        "--budget",
        "300",
        "--seed",
        "0-1",
    ]
    assert call("run", "-q", *axes).exit_code == 0
    cells = [(spec.attack, spec.budget, spec.seed) for spec in fake.specs]
    assert cells == [(a, b, s) for a in ("dfme", "random_noise") for b in (1000, 300) for s in (0, 1)]


def test_a_pool_goes_to_the_attacks_that_take_one(call, fake):
    attacks = ["--attack", "dfme", "--attack", "knock*", "--attack", "knockoff:epochs=3"]
    assert call("run", "-q", *attacks, "--pool", "digits").exit_code == 0
    pools = {spec.attack: spec.pool for spec in fake.specs}
    assert pools == {"dfme": None, "knockoff": "digits", "knockoff:epochs=3": "digits"}


def test_equal_runs_are_run_once(call, fake):
    assert call("run", "--defense", "topk", "--defense", "topk:k=3", "--seed", "0,0").exit_code == 0
    assert len(fake.specs) == 1


def test_json_is_all_that_stdout_holds(call, fake):
    result = call("run", "--json", "--seed", "0-1", "--budget", "300")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["spec"]["seed"] for record in records] == [0, 1]
    assert all(record["stolen"]["agreement"] == 0.918 for record in records)
    assert "2 of 2 runs done" in result.stderr


def test_quiet_is_quiet(call, fake):
    assert call("run", "-q", "--json").stderr == ""


def test_a_failed_run_does_not_stop_the_others(call, fake):
    fake.failing["dfme"] = RuntimeError("it\nbroke")
    result = call("run", "--json", "--attack", "dfme", "--attack", "random_noise")
    assert result.exit_code == 1
    statuses = [json.loads(line)["status"] for line in result.stdout.splitlines()]
    assert statuses == ["failed", "done"]
    line = next(line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert "RuntimeError: it broke" in line
    assert "runs/digits/lenet5/none/dfme" in line.replace("\\", "/")
    assert "Traceback" not in result.stderr


def test_verbose_shows_the_traceback(call, fake):
    fake.failing["dfme"] = RuntimeError("it broke")
    assert "Traceback" in call("run", "-v", "--attack", "dfme").stderr
    assert "Traceback" in call("-v", "run", "--attack", "dfme").stderr


def test_absent_data_are_a_usage_error(refused, call, fake):
    fake.failing["dfme"] = MissingData("no files")
    assert refused("run", "-q", "--attack", "dfme") == "Error: no files\n"
    result = call("run", "--attack", "dfme", "--attack", "random_noise")
    assert result.exit_code == 2
    assert len(fake.specs) == 3, "the other run is done all the same"


def test_interrupted(call, fake):
    fake.failing["dfme"] = Interrupted("state saved")
    result = call("run", "-q", "--attack", "dfme", "--attack", "random_noise")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted: state saved; the same command continues\n"
    assert len(fake.specs) == 1


def test_unexpected_error_is_one_line_with_a_hint(call, monkeypatch):
    def broken(spec, **options):
        raise ValueError("odd")

    monkeypatch.setattr("msbench.benchmark.runner.run_in_turns", broken)
    result = call("run", "-q")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ValueError: odd")
    assert "-v" in result.stderr
    assert "Traceback" in call("run", "-qv").stderr


def test_dry_run_counts_and_runs_nothing(call, fake, tmp_path):
    call("run", "-q", "--budget", "300", "--seed", "0")
    grid = ["--budget", "300", "--budget", "1k", "--seed", "0-2", "--dry-run"]
    plan = json.loads(call("run", *grid, "--json").stdout)
    assert (plan["cached"], plan["pending"], plan["unfinished"]) == (1, 5, 0)
    assert plan["queries"] == 2 * 300 + 3 * 1000
    assert [run["state"] for run in plan["runs"]].count("cached") == 1
    text = call("run", *grid).stdout
    assert "6 runs: 1 cached, 0 unfinished, 5 pending; at most 3,600 queries" in text
    forced = json.loads(call("run", *grid, "--json", "--force").stdout)
    assert forced["queries"] == 3 * 300 + 3 * 1000
    assert len(fake.calls) == 1


@pytest.mark.parametrize("force", [False, True])
def test_dry_run_sees_what_it_would_continue_and_creates_nothing(call, tmp_path, force):
    given = ["run", "--dry-run", "--json", *["--force"] * force]
    [run] = json.loads(call(*given).stdout)["runs"]
    assert not (tmp_path / "runs").exists()
    for forced, unfinished in ((not force, 0), (force, 1)):
        state = Store(tmp_path / "runs").state_path(run["run_id"], forced=forced)
        state.parent.mkdir(parents=True, exist_ok=True)
        state.touch()
        assert json.loads(call(*given).stdout)["unfinished"] == unfinished


def test_runs_of_one_store_are_shown_by_their_id(call, fake, refused):
    result = call("run", "-q", "--json")
    run_id = json.loads(result.stdout)["run_id"]
    assert "dualstudent against none" in call("show", run_id).stdout
    assert "--store" in refused("show", run_id, "--store", "other")


@pytest.mark.parametrize(("flags", "asked"), [([], "auto"), (["--compile", "on"], "on"), (["--compile", "off"], "off")])
def test_compilation_is_asked_for(call, fake, flags, asked):
    assert call("run", *flags).exit_code == 0
    [(_, options)] = fake.calls
    assert options["compilation"] == asked
