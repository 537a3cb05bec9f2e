"""Runs in processes of their own: what becomes of them, of their records, and of drivers that share a store."""

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msbench.benchmark.launchers.base import Conditions, Due, Outcome, Watcher
from msbench.benchmark.launchers.claims import Claim
from msbench.benchmark.launchers.local import LocalLauncher
from msbench.benchmark.spec import Cell
from msbench.benchmark.suite import freeze, plans
from msbench.benchmark.sweep import due, look
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store, load, record_files
from msbench.leaderboard.suites import load_suite, suite_text

PLACED = f"{Path(__file__).with_name('placed.py')}:Placed"
PROGRAM = (sys.executable, "-c", "from msbench.benchmark.cli.main import main; main()")
PATIENCE = 1200
"""Seconds that a whole sweep may take on a busy machine."""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACED", str(tmp_path))
    monkeypatch.setenv("MSBENCH_SAVE_SECONDS", "0")


def suite(folder: Path, *, columns: int, seeds: int, budget: int = 80) -> Path:
    """A frozen suite of that many runs."""
    attacks = ", ".join(f'{{ attack = "{PLACED}:number={number}" }}' for number in range(columns))
    text = f'title = "t"\ntext = ""\n[[table]]\ntarget = "digits/lenet5"\nbudgets = [{budget}]\ndefenses = ["none"]\n'
    (folder / "some.toml").write_text(f"{text}seeds = {list(range(seeds))}\ncolumns = [{attacks}]\n")
    (folder / "some.json").write_text(suite_text(freeze(str(folder / "some.toml"))))
    return folder / "some.json"


def executions(folder: Path) -> Counter[str]:
    """How often each run took its first step; fails if any other step was taken twice."""
    steps = Counter((folder / "steps").read_text().splitlines())
    assert {step: count for step, count in steps.items() if count > 1 and not step.endswith(" 0")} == {}
    return Counter({step.partition(" ")[0]: count for step, count in steps.items() if step.endswith(" 0")})


@dataclass
class Ear(Watcher):
    """Remembers how runs ended, by attack and seed."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        name = f"{cell.request.attack[-1]}-{cell.request.seed}"
        assert name not in self.outcomes
        self.outcomes[name] = outcome


def place(runs: list[Due], store: Store, *, timeout: float | None = None) -> dict[str, Outcome]:
    ear = Ear()
    conditions = Conditions(store=store.root, device="cpu", download=False)
    LocalLauncher(conditions=conditions, slots=3, timeout=timeout).launch(runs, ear, threading.Event())
    return ear.outcomes


def launch(path: Path, store: Store, *, retry_failed: bool = False, timeout: float | None = None) -> dict[str, Outcome]:
    standings = look(plans(load_suite(str(path))), store)
    return place(due(standings, retry_failed=retry_failed), store, timeout=timeout)


def records(store: Store) -> dict[str, Record]:
    """By attack and seed."""
    found = [load(path) for path in record_files(store.root)]
    named = {f"{record.spec.attack.params['number']}-{record.spec.seed}": record for record in found}
    assert len(named) == len(found)
    return named


# --------------------------------------------------------------------------------------------------- claims


def test_a_claim_is_held_by_one_until_it_is_released(tmp_path: Path) -> None:
    first = Claim.take(tmp_path, "abc")
    assert first is not None
    assert Claim.take(tmp_path, "abc") is None
    other = Claim.take(tmp_path, "abd")
    assert other is not None
    first.release()
    again = Claim.take(tmp_path, "abc")
    assert again is not None
    again.release()
    other.release()
    assert list((tmp_path / ".claims").iterdir()) == []


def test_a_claim_on_a_file_that_was_removed_meanwhile_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the holder may have removed the file, and a third may hold a new one."""
    import fcntl

    held = []

    def overtaken(handle: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", honest)
        (tmp_path / ".claims" / "abc").unlink()
        held.append(Claim.take(tmp_path, "abc"))
        honest(handle, how)

    honest = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", overtaken)
    assert Claim.take(tmp_path, "abc") is None
    held[0].release()


# ---------------------------------------------------------------------------------------------------- fates


def test_runs_end_as_they_do_and_never_stop_the_others(tmp_path: Path, store: Store) -> None:
    path = suite(tmp_path, columns=2, seeds=2)
    (tmp_path / "endings.json").write_text(json.dumps({"0-0": "raise", "1-0": "kill"}))
    ended = launch(path, store)
    assert {name for name, outcome in ended.items() if outcome.status == "done"} == {"0-1", "1-1"}
    reasons = {name: outcome.reason for name, outcome in ended.items() if outcome.status == "failed"}
    assert reasons == {"0-0": "OSError: a file of the user's is gone", "1-0": "Killed: it died of SIGKILL"}
    kept = records(store)
    assert {name: record.status for name, record in kept.items()} == {n: o.status for n, o in ended.items()}
    killed = kept["1-0"].error
    assert killed is not None and "the last words" in killed.traceback
    assert launch(path, store) == {}, "what failed is left alone unless it is asked for"

    (tmp_path / "endings.json").unlink()
    assert {o.status for o in launch(path, store, retry_failed=True).values()} == {"done"}
    assert executions(tmp_path) == {"0-0": 2, "1-0": 2, "0-1": 1, "1-1": 1}
    assert list((store.root / ".claims").iterdir()) == list((store.root / ".states").iterdir()) == []


def test_a_run_that_hangs_is_killed_when_its_time_is_over(tmp_path: Path, store: Store) -> None:
    path = suite(tmp_path, columns=1, seeds=1)
    (tmp_path / "endings.json").write_text(json.dumps({"0-0": "hang"}))
    began = time.monotonic()
    assert launch(path, store, timeout=3)["0-0"].status == "failed"
    assert time.monotonic() - began < 60
    error = records(store)["0-0"].error
    assert error is not None
    assert (error.type, error.message) == ("TimedOut", "it ran longer than its 3 seconds and was killed")


def test_what_another_driver_holds_is_waited_for_and_not_done_again(tmp_path: Path, store: Store) -> None:
    first, second = plans(load_suite(str(suite(tmp_path, columns=1, seeds=2))))
    claim = Claim.take(store.root, first.run_id)
    assert claim is not None

    def other() -> None:
        """Another driver, which does its run, elsewhere first, when this one has done the rest."""
        while store.get(second.info) is None:
            time.sleep(0.1)
        elsewhere = Store(tmp_path / "elsewhere")
        place([Due(cell=first, stamp=None)], elsewhere)
        record = elsewhere.get(first.info)
        assert record is not None
        store.save(record)
        claim.release()

    thread = threading.Thread(target=other)
    thread.start()
    ended = place([Due(cell=first, stamp=None), Due(cell=second, stamp=None)], store)
    thread.join()
    assert ended == {"0-1": Outcome(status="done"), "0-0": Outcome(status="done", elsewhere=True)}
    assert executions(tmp_path) == {"0-0": 1, "0-1": 1}


def test_a_failure_that_another_driver_recorded_is_not_repeated(tmp_path: Path, store: Store) -> None:
    path = suite(tmp_path, columns=1, seeds=1)
    (tmp_path / "endings.json").write_text(json.dumps({"0-0": "raise"}))
    seen = look(plans(load_suite(str(path))), store)
    launch(path, store)
    late = place(due(seen, retry_failed=True), store)["0-0"]
    assert (late.status, late.elsewhere) == ("failed", True)
    assert executions(tmp_path) == {"0-0": 1}


def test_after_a_stop_nothing_is_begun(tmp_path: Path, store: Store) -> None:
    runs = due(look(plans(load_suite(str(suite(tmp_path, columns=1, seeds=1)))), store), retry_failed=False)
    ear, stop = Ear(), threading.Event()
    stop.set()
    LocalLauncher(conditions=Conditions(store=store.root, device="cpu")).launch(runs, ear, stop)
    assert ear.outcomes == {}


def test_what_is_not_what_the_suite_froze_is_refused(tmp_path: Path, store: Store) -> None:
    (cell,) = plans(load_suite(str(suite(tmp_path, columns=1, seeds=1))))
    other = Cell(request=cell.request, info=cell.info.model_copy(update={"clone": "lenet5:hidden=7"}))
    refused = place([Due(cell=other, stamp=None)], store)["0-0"]
    assert refused.status == "refused"
    assert "clone differ" in refused.reason
    assert list(record_files(store.root)) == []


@pytest.mark.slow
def test_the_server_does_not_touch_cuda() -> None:
    script = (
        "import torch\n"
        "def touched(*_, **__): raise SystemExit('CUDA was touched')\n"
        "torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = touched\n"
        "import msbench.benchmark.launchers.child\n"
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- commands


def start(path: Path, store: Store, *more: str) -> subprocess.Popen[bytes]:
    """``msbench sweep`` as a process."""
    command = [*PROGRAM, "sweep", str(path), "--store", str(store.root), "--device", "cpu", "--slots", "3", *more]
    with (path.parent / "stderr").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)


def wait_for_records(store: Store, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(list(record_files(store.root))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_sixty_runs_of_which_three_fail(tmp_path: Path, store: Store) -> None:
    path = suite(tmp_path, columns=6, seeds=10)
    (tmp_path / "endings.json").write_text(json.dumps({"0-3": "raise", "1-4": "kill", "2-5": "hang"}))
    assert start(path, store, "--timeout", "60").wait(PATIENCE) == 1
    statuses = {name: record.status for name, record in records(store).items()}
    assert Counter(statuses.values()) == {"done": 57, "failed": 3}
    named = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("Error: ")]
    assert len(named) == 3
    (tmp_path / "endings.json").unlink()
    assert start(path, store).wait(PATIENCE) == 1, "what failed is still not done"
    assert start(path, store, "--retry-failed").wait(PATIENCE) == 0
    assert Counter(record.status for record in records(store).values()) == {"done": 60}
    assert sum(executions(tmp_path).values()) == 63


@pytest.mark.slow
def test_a_driver_that_is_killed_and_started_again_loses_and_repeats_nothing(tmp_path: Path, store: Store) -> None:
    path = suite(tmp_path, columns=6, seeds=10, budget=400)
    first = start(path, store)
    wait_for_records(store, 30)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(path, store).wait(PATIENCE) == 0
    assert Counter(record.status for record in records(store).values()) == {"done": 60}
    assert executions(tmp_path) == Counter({f"{number}-{seed}": 1 for number in range(6) for seed in range(10)})


@pytest.mark.slow
def test_two_drivers_at_once_do_every_run_once(tmp_path: Path, store: Store) -> None:
    path = suite(tmp_path, columns=6, seeds=10)
    both = [start(path, store), start(path, store)]
    assert [driver.wait(PATIENCE) for driver in both] == [0, 0]
    assert Counter(record.status for record in records(store).values()) == {"done": 60}
    assert executions(tmp_path) == Counter({f"{number}-{seed}": 1 for number in range(6) for seed in range(10)})


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_asked_to_stop_saves_and_continues(tmp_path: Path, store: Store, number: int) -> None:
    path = suite(tmp_path, columns=2, seeds=3, budget=20_000)
    driver = start(path, store)
    deadline = time.monotonic() + PATIENCE
    while not list(store.root.glob(".states/*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(number)
    assert driver.wait(PATIENCE) == 130
    assert "the same command continues" in (tmp_path / "stderr").read_text()
    assert start(path, store).wait(PATIENCE) == 0
    assert Counter(record.status for record in records(store).values()) == {"done": 6}
    assert set(executions(tmp_path).values()) == {1}


@pytest.mark.slow
def test_a_dry_run_of_ten_thousand_runs_takes_three_seconds(tmp_path: Path, store: Store) -> None:
    smoke = load_suite("smoke")
    more = smoke.tables[0].model_copy(update={"seeds": tuple(range(11))})
    path = tmp_path / "many.json"
    path.write_text(suite_text(smoke.model_copy(update={"tables": (more,)})))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert start(path, store, "--dry-run").wait(PATIENCE) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 3
    assert len(plans(load_suite(str(path)))) > 10_000
