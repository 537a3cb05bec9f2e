"""One run from end to end on the digits: what is recorded, what is kept, and what a failure leaves behind."""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msbench.benchmark import evaluation, session
from msbench.benchmark.metrics import milestones
from msbench.benchmark.spec import RunSpec, resolve
from msbench.components import load_class
from msbench.errors import BadParameter, Interrupted, MissingData, StoreError, UsageError
from msbench.leaderboard.contradictions import contradictions
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store, dumps, load, record_files
from msbench.targets import training
from msbench.targets.zoo import load_target

from .conftest import UNTRAINED

Steal = Callable[..., Record]
Numbers = Callable[[Record], dict[str, Any]]

NOISE = RunSpec(attack="random_noise:batch=40", budget=640)
MISBEHAVING = Path(__file__).with_name("misbehaving.py")


def misbehaving(name: str) -> str:
    return f"{MISBEHAVING}:{name}"


def files(store: Store) -> list[Path]:
    """Everything in a store, records or not."""
    return [path for path in store.root.rglob("*") if path.is_file()] if store.root.exists() else []


# ---------------------------------------------------------------------------------------------- what is recorded


def test_a_run_is_recorded_in_full(steal: Steal, store: Store, ear: Any) -> None:
    record = steal(NOISE, listener=ear)
    assert load(store.path_of(record)) == record
    assert list(record_files(store.root)) == [store.path_of(record)]
    assert (record.status, record.error, record.flags) == ("done", None, [])
    assert record.spec == resolve(NOISE).info
    assert record.budget.model_dump() == {"limit": 640, "spent": 640, "stop": "budget spent"}
    assert record.timing.resumed == 0
    assert record.timing.wall >= record.timing.attack + record.timing.evaluation - 0.002
    assert record.timing.latency_ratio.keys() == {"1", "256"}
    assert not (store.root / ".states").exists() or not any((store.root / ".states").iterdir())
    assert ear.points == record.curve
    assert ear.warnings == []
    assert ear.phases[-1] == "measuring"


def test_data_that_a_defense_was_given_are_recorded_in_full(steal: Steal) -> None:
    given, none = steal(replace(NOISE, defense=misbehaving("Helped"))), steal(NOISE)
    assert given.diagnostics is not None and none.diagnostics is not None
    assert (given.diagnostics.auxiliary, none.diagnostics.auxiliary) == (["patches"], [])


def test_the_targets_accuracy_is_what_it_is_here(steal: Steal, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*args: Any, **options: Any) -> Any:
        loaded = load_target(*args, **options)
        return replace(loaded, card=replace(loaded.card, accuracy=0.123))

    monkeypatch.setattr(session, "load_target", elsewhere)
    record = steal(NOISE)
    assert record.target is not None and record.paid is not None
    assert record.target.accuracy == record.paid.defended_accuracy > 0.7


def test_the_numbers_are_those_of_the_target_and_of_the_last_milestone(steal: Steal) -> None:
    record = steal(NOISE)
    loaded = load_target("digits/lenet5")
    assert record.target is not None and record.stolen is not None and record.paid is not None
    assert (record.target.accuracy, record.target.digest) == (loaded.card.accuracy, loaded.card.digest)
    assert record.target.accuracy > 0.7  # or nothing below would mean much
    last = record.curve[-1]
    assert (record.stolen.clone_accuracy, record.stolen.agreement) == (last.clone_accuracy, last.agreement)
    assert record.stolen.agreement_released == record.stolen.agreement  # nothing is defended
    assert record.paid.defended_accuracy == record.paid.defended_accuracy_before == record.target.accuracy
    assert record.paid.argmax_changed == record.paid.l1.max == 0.0
    assert record.stolen.transfer.epsilon == 0.3
    assert record.stolen.transfer.images == round(record.target.accuracy * 450)
    assert record.diagnostics is not None
    assert sum(record.diagnostics.label_histogram) == 640


@pytest.mark.usefixtures("brief")
def test_the_curve_is_measured_at_the_milestones(steal: Steal) -> None:
    record = steal(replace(NOISE, attack="random_noise:batch=1", budget=80))
    assert [point.queries for point in record.curve] == milestones(80)
    record = steal(NOISE)  # a step of forty passes several at once
    assert [point.queries for point in record.curve] == [40, 80, 160, 320, 640]


@pytest.mark.usefixtures("brief")
def test_the_curve_ends_with_the_clone_that_is_judged(steal: Steal) -> None:
    record = steal(replace(NOISE, attack=misbehaving("LearnsLast")))
    assert record.stolen is not None
    last = record.curve[-1]
    assert (last.queries, last.clone_accuracy, last.agreement) == (
        640,
        record.stolen.clone_accuracy,
        record.stolen.agreement,
    )
    assert record.curve[-2].clone_accuracy != last.clone_accuracy
    assert not [problem for problem in contradictions(record) if problem.startswith("curve")]


@pytest.mark.usefixtures("brief")
def test_only_the_last_clone_is_on_the_attacks_account(steal: Steal, monkeypatch: pytest.MonkeyPatch) -> None:
    clones, clock = [], [0.0]

    def clone(attack: Any) -> Any:
        clones.append(attack.victim.spent)
        clock[0] += 1000
        return attack.network.eval()

    spec = misbehaving("Untrained")
    monkeypatch.setattr(load_class("attack", spec), "clone", clone)
    monkeypatch.setattr(session.time, "perf_counter", lambda: clock[0])
    record = steal(replace(NOISE, attack=spec))
    assert clones == [point.queries for point in record.curve] == [40, 80, 160, 320, 640]
    assert (record.timing.attack, record.timing.evaluation) == (1000, 4000)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("budget", [1, 2, 41])
def test_a_tiny_budget_is_spent_to_the_last_query(steal: Steal, budget: int) -> None:
    record = steal(replace(NOISE, budget=budget))
    assert (record.status, record.budget.spent) == ("done", budget)
    assert record.curve[-1].queries == budget


@pytest.mark.usefixtures("brief")
def test_what_is_left_of_the_budget_is_explained(steal: Steal) -> None:
    record = steal(replace(NOISE, recovery="averaging:repeats=3", budget=101))
    assert record.budget.spent == 99
    assert record.budget.stop == "2 left, fewer than the 3 that one image costs under averaging:repeats=3"
    record = steal(replace(NOISE, attack="knockoff:epochs=1", pool="digits", budget=1500))
    assert record.budget.spent == 1347
    assert record.budget.stop == "the pool's 1347 images are all queried"


@pytest.mark.usefixtures("brief")
def test_the_defense_is_paid_for(steal: Steal) -> None:
    record = steal(replace(NOISE, defense="noise:scale=0.5"))
    assert record.paid is not None and record.stolen is not None and record.target is not None
    assert record.paid.defended_accuracy < record.target.accuracy
    assert 0 < record.paid.argmax_changed < 1
    assert 0 < record.paid.l1.mean <= record.paid.l1.p95 <= record.paid.l1.max
    assert record.paid.l1_queries is not None
    assert record.paid.l1_queries.mean > 0
    assert record.paid.state_bytes > 0


@pytest.mark.usefixtures("brief")
def test_a_defense_that_breaks_its_promise_is_flagged(steal: Steal) -> None:
    record = steal(replace(NOISE, defense=misbehaving("Liar")))
    assert record.status == "done"
    assert record.flags == ["declares to preserve the top class, but changed it for test images"]


@pytest.mark.usefixtures("brief")
def test_only_what_is_not_the_victims_computes_in_bfloat16(steal: Steal, numbers: Numbers) -> None:
    full, half = (steal(replace(NOISE, precision=precision)) for precision in ("fp32", "bf16"))
    assert (half.status, half.spec.precision) == ("done", "bf16")
    assert half.paid == full.paid
    assert half.diagnostics == full.diagnostics
    assert numbers(half)["stolen"] != numbers(full)["stolen"]


# ------------------------------------------------------------------------------------ the same again, or another


@pytest.mark.usefixtures("brief")
def test_a_finished_run_is_not_run_again_unless_forced(steal: Steal, ear: Any, numbers: Numbers) -> None:
    first = steal(NOISE)
    again = steal(NOISE, listener=ear)
    assert again == first
    assert ear.phases == [f"run {first.run_id} is done already"]
    assert ear.points == []
    forced = steal(NOISE, listener=ear, force=True)
    assert ear.points == forced.curve
    assert numbers(forced) == numbers(first)


@pytest.mark.usefixtures("brief")
def test_a_run_on_images_of_ones_own_tells_nobody_where_they_are(
    steal: Steal, photographs: Callable[[str], Path], tmp_path: Path, ear: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training.RECIPES, "imagefolder", training.Recipe(epochs=4, batch=8, lr=1e-2, weight_decay=0))

    def asked(targets: Path, pool: Path) -> RunSpec:
        return RunSpec(
            target=f"imagefolder:{targets},size=8/lenet5:width=4,hidden=8",
            attack="knockoff:epochs=1",
            pool=f"imagefolder:{pool},size=8",
            budget=8,
        )

    targets, pool = photographs("somebody/pets"), photographs("somebody/strays")
    record = steal(asked(targets, pool))
    assert (record.status, record.budget.spent) == ("done", 8)
    assert record.stolen is not None and record.stolen.transfer.epsilon == 8 / 255
    assert "somebody" not in dumps(record)
    moved = [folder.rename(tmp_path / folder.name) for folder in (targets, pool)]
    assert steal(asked(*moved), listener=ear) == record
    assert ear.phases == [f"run {record.run_id} is done already"]


@pytest.mark.usefixtures("brief")
def test_a_training_that_is_stopped_is_an_interrupted_run(
    steal: Steal, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / "untrained"))
    monkeypatch.setitem(training.RECIPES, "digits", replace(training.RECIPES["digits"], epochs=1))
    stop = threading.Event()
    stop.set()
    spec = replace(NOISE, target=UNTRAINED)
    with pytest.raises(Interrupted, match="before the target was ready"):
        steal(spec, stop=stop)
    (record,) = store.records()
    assert (record.status, record.target, record.budget.spent) == ("interrupted", None, 0)
    assert steal(spec).status == "done"


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("changes", [{"seed": 1}, {"defense_seed": 1}])
def test_another_seed_is_another_run(steal: Steal, numbers: Numbers, changes: dict[str, int]) -> None:
    spec = replace(NOISE, defense="noise")
    first, second = steal(spec), steal(replace(spec, **changes))
    assert first.run_id != second.run_id
    assert first.target == second.target
    assert numbers(first)["stolen"] != numbers(second)["stolen"]
    assert (numbers(first)["paid"]["l1"] != numbers(second)["paid"]["l1"]) == ("defense_seed" in changes)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_from_an_argmax_preserving_defense_steal_exactly_as_much_as_labels_released(
    steal: Steal, seed: int
) -> None:
    spec = replace(NOISE, attack="dualstudent:batch=24,width=8", seed=seed)
    recovered = steal(replace(spec, defense="topk:k=3", recovery="argmax"))
    released = steal(replace(spec, defense="label_only"))
    assert recovered.stolen == released.stolen
    assert recovered.curve == released.curve


@pytest.mark.usefixtures("brief")
def test_labels_are_worth_something_else_than_probabilities(steal: Steal) -> None:
    assert steal(NOISE).stolen != steal(replace(NOISE, defense="label_only")).stolen


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("attack", ["random_noise:batch=40", misbehaving("GloballyRandom")])
def test_the_global_random_state_is_put_back_and_does_not_matter(steal: Steal, numbers: Numbers, attack: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    first = steal(replace(NOISE, attack=attack))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state(legacy=False)) == str(before[2])
    torch.manual_seed(2)
    assert numbers(steal(replace(NOISE, attack=attack), force=True)) == numbers(first)


# ------------------------------------------------------------------------------------------------ usage errors


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"defense": "topk:k=12"}, BadParameter, "12"),
        ({"target": "mnist/lenet5"}, MissingData, "mnist"),
        ({"attack": "knockoff", "pool": "svhn"}, MissingData, "svhn"),
        ({"attack": misbehaving("Particular")}, UsageError, "wants color images"),
        ({"defense": "topkk"}, UsageError, "topk"),
    ],
)
def test_what_cannot_be_had_is_raised_and_leaves_nothing(
    steal: Steal, store: Store, changes: dict[str, str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        steal(replace(NOISE, **changes))
    assert files(store) == []


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan"])
def test_an_unusable_interval_of_saving_is_refused(
    steal: Steal, store: Store, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("MSBENCH_SAVE_SECONDS", seconds)
    with pytest.raises(UsageError, match=f"MSBENCH_SAVE_SECONDS='{seconds}' is not usable"):
        steal(NOISE)
    assert files(store) == []


def test_a_store_that_cannot_be_written_is_refused_before_any_training(
    steal: Steal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ear: Any
) -> None:
    monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / "untrained"))
    (tmp_path / "file").write_text("not a folder")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=r"cannot write to .*file"):
            steal(replace(NOISE, target=UNTRAINED), store=Store(root), listener=ear)
    assert not (tmp_path / "untrained").exists()
    assert ear.phases == []


def test_an_absent_device_is_refused(steal: Steal, store: Store) -> None:
    with pytest.raises(UsageError, match="device 'quantum' cannot be used"):
        steal(NOISE, device="quantum")
    assert files(store) == []


# ---------------------------------------------------------------------------------------------------- failures


def test_a_crash_is_recorded_without_the_home_folder(
    steal: Steal, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ear: Any
) -> None:
    home = tmp_path / "home" / "somebody"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "attack.py").write_bytes(MISBEHAVING.read_bytes())
    record = steal(replace(NOISE, attack=f"{home}/attack.py:Crashes"), listener=ear)
    assert record.status == "failed"
    assert load(store.path_of(record)) == record
    assert record.error is not None
    assert (record.error.type, record.error.message) == ("OSError", "cannot open ~/thesis/notes.txt")
    assert 'File "~/attack.py", line ' in record.error.traceback
    assert "in step" in record.error.traceback
    assert "somebody" not in dumps(record)
    assert record.budget.model_dump() == {"limit": 640, "spent": 120, "stop": "failed"}
    assert [point.queries for point in record.curve] == [40, 80]
    assert (record.stolen, record.paid, record.diagnostics) == (None, None, None)
    assert record.target is not None
    assert ear.warnings == []  # whoever asked gets the record


@pytest.mark.parametrize(
    ("fault", "after", "words"),
    [
        ("nan", 0, "released NaN or infinite values"),
        ("nan", 500, "released NaN or infinite values"),
        ("logits", 500, "released negative values"),
        ("half", 0, "rows that sum to 0.5"),
        ("list", 0, "released a list, not a tensor"),
    ],
)
def test_a_defense_that_releases_no_probabilities_fails_the_run_by_name(
    steal: Steal, fault: str, after: int, words: str
) -> None:
    record = steal(replace(NOISE, defense=misbehaving("Faulty") + f":fault={fault},after={after}"))
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.type == "ContractViolation"
    assert "misbehaving.py:Faulty" in record.error.message
    assert words in record.error.message
    # The attack asks forty at a time. At each milestone 450 test images are asked, without a trace: after eighty of the
    # attack's they are too many.
    assert record.budget.spent == (0 if after == 0 else 80)


@pytest.mark.parametrize(
    ("attack", "kind", "words"),
    [
        ("Greedy", "BudgetExceeded", "asked for 641 queries with 640 of 640 left"),
        ("Idle", "ContractViolation", "ended without a single query"),
        ("Tampers", "ContractViolation", "was answered 40 images but charged 0"),
    ],
)
def test_an_attack_that_breaks_the_rules_fails(steal: Steal, attack: str, kind: str, words: str) -> None:
    record = steal(replace(NOISE, attack=misbehaving(attack)))
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.type == kind
    assert words in record.error.message
    assert record.budget.spent == 0


@pytest.mark.usefixtures("brief")
def test_a_failed_run_is_tried_again_and_its_record_replaced(
    steal: Steal, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "paid", cannot)
        assert steal(NOISE).status == "failed"
    record = steal(NOISE)
    assert record.status == "done"
    assert record.timing.resumed == 1  # the attack was over: only the measuring is done again
    assert list(store.records()) == [record]


@pytest.mark.usefixtures("brief")
def test_a_finished_record_outlives_a_forced_run_that_is_interrupted_or_fails(
    steal: Steal, store: Store, stop_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = steal(NOISE)
    with pytest.raises(Interrupted):
        steal(NOISE, force=True, stop=stop_after(3))
    assert list(store.records()) == [first]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "paid", lambda *_: 1 / 0)
        assert steal(NOISE, force=True).status == "failed"
    assert list(store.records()) == [first]


@pytest.fixture
def strays(store: Store) -> Iterator[list[Path]]:
    """What processes killed in the middle of writing leave behind."""
    spec = resolve(NOISE)
    state = store.state_path(spec.run_id)
    folder = store.root / "digits" / "lenet5" / "none" / "random_noise"
    paths = [folder / ".none-s0-0123456789ab.json.x1y2.tmp", state.with_name(f".{state.name}.x1y2.tmp")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"status": "don')
    yield paths


@pytest.mark.usefixtures("brief")
def test_half_written_files_are_no_records(steal: Steal, store: Store, strays: list[Path]) -> None:
    assert list(store.records()) == []
    record = steal(NOISE)
    assert list(store.records()) == [record]
    assert not strays[1].exists()  # a state's strays go with the state
