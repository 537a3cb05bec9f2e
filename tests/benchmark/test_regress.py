"""The gate on attack strength catches sabotage, and lets an unchanged tree pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msbench.attacks import dualstudent
from msbench.attacks.base import AttackContext, StepReport
from msbench.attacks.dualstudent import DualStudent
from msbench.attacks.learning import imitation_targets
from msbench.benchmark.metrics import all_labels
from msbench.benchmark.regress import cells_of, key_of
from msbench.benchmark.runner import run
from msbench.benchmark.suite import load
from msbench.errors import UnknownName, UsageError
from msbench.leaderboard.baseline import Comparison, Planned, compare, load_baseline
from msbench.leaderboard.store import Store
from msbench.targets.datasets.loading import load_dataset


def test_what_no_suite_has() -> None:
    with pytest.raises(UnknownName, match=r"zz\*"):
        cells_of(load("ci"), attacks=["zz*"])
    with pytest.raises(UnknownName, match="rounding"):
        cells_of(load("ci"), defenses=["rounding"])
    with pytest.raises(UsageError, match="suite ci has no run of maze, topk:k=3"):
        cells_of(load("ci"), attacks=["maze"], defenses=["topk:k=3"])


def test_too_few_seeds_are_refused_before_anything_is_run() -> None:
    with pytest.raises(UsageError, match=r"dualstudent has 2 of the 3 seeds .* give more with --seed"):
        cells_of(load("ci"), [0, 1])
    assert {cell.request.seed for cell in cells_of(load("ci"), [5, 6, 7])} == {5, 6, 7}


def test_an_attack_s_name_stands_for_all_its_recoveries() -> None:
    asked = {(cell.request.defense, cell.request.recovery) for cell in cells_of(load("ci"), attacks=["dualstudent"])}
    assert asked == {("none", "none"), ("topk:k=3", "argmax")}
    plain = {cell.request.recovery for cell in cells_of(load("ci"), attacks=["dualstudent + argmax"])}
    assert plain == {"argmax"}


def _changes(suite: str, seeds: list[int], folder: Path) -> list[Comparison]:
    """What the gate says of Dual Student on the undefended target, in this process."""
    cells = cells_of(load(suite), seeds, attacks=["dualstudent"], defenses=["none"])
    runs = [
        Planned(
            cell=key_of(cell),
            seed=cell.request.seed,
            record=run(cell.request, store=Store(folder), device="cpu", download=False),
        )
        for cell in cells
    ]
    lines = compare(load_baseline(suite), runs)
    for line in lines:
        print(line)
    return [line for line in lines if not line.holds]


def _generator_never_updated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DualStudent, "_generator_step", lambda self: torch.zeros(()))


def _students_share_their_initialization(patch: pytest.MonkeyPatch) -> None:
    original = AttackContext.new_clone
    patch.setattr(AttackContext, "new_clone", lambda self, name: original(self, "student 0"))


def _learning_rate_divided_by_ten(patch: pytest.MonkeyPatch) -> None:
    original = DualStudent._follow_schedule

    def slowly(self: DualStudent) -> None:
        original(self)
        self.pupils.set_lr(self.pupils.optimizer.param_groups[0]["lr"] / 10)

    patch.setattr(DualStudent, "_follow_schedule", slowly)


def _wrong_sign_in_the_generator_loss(patch: pytest.MonkeyPatch) -> None:
    original = dualstudent.disagreement
    patch.setattr(dualstudent, "disagreement", lambda logits: -original(logits))


def _logits_not_recovered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dualstudent, "imitation_targets", lambda answers, **_: answers)


def _half_the_budget_unused(patch: pytest.MonkeyPatch) -> None:
    original = DualStudent.step

    def step(self: DualStudent) -> StepReport:
        report = original(self)
        return replace(report, done=report.done or 2 * self.victim.spent >= self.victim.budget)

    patch.setattr(DualStudent, "step", step)


def _test_labels_leaked(patch: pytest.MonkeyPatch) -> None:
    test = load_dataset("digits").load("test", data_dir=Path(), download=False, device="cpu")
    images, _ = test.take(torch.arange(len(test)))
    labels = torch.nn.functional.one_hot(all_labels(test), 10).float()
    answers = imitation_targets(0.91 * labels + 0.01, floor=1e-4, labels_only=False)
    original = DualStudent._student_step

    def step(self: DualStudent, queried: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.pupils.learn(images, answers)
        return original(self, queried, targets)

    patch.setattr(DualStudent, "_student_step", step)


SABOTAGE = [
    _generator_never_updated,
    _students_share_their_initialization,
    _learning_rate_divided_by_ten,
    _wrong_sign_in_the_generator_loss,
    _logits_not_recovered,
    _half_the_budget_unused,
    _test_labels_leaked,
]


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda each: each.__name__.strip("_"))
def test_sabotage_is_caught(
    sabotage: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    changes = _changes("ci", [100, 101, 102], tmp_path)
    assert changes
    if sabotage is _test_labels_leaked:
        assert "stronger" in {line.verdict for line in changes}


@pytest.mark.slow
def test_without_sabotage_nothing_is(tmp_path: Path) -> None:
    assert not _changes("ci", [100, 101, 102], tmp_path)
