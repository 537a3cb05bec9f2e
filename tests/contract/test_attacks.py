"""Every installed attack keeps to its budget, ends by itself, and passes the contract suite."""

from typing import Any, cast

import pytest
import torch
from msbench.attacks.base import Attack, AttackContext, StepReport
from msbench.attacks.recovery.averaging import Averaging
from msbench.benchmark.checks import IMAGE_SHAPE, tiny_network
from msbench.benchmark.validate_attack import validate_attack
from msbench.components import format_spec, load_class, names
from msbench.errors import BudgetExceeded
from msbench.targets.blackbox import BlackBox, Victim
from msbench.targets.datasets.base import TensorImages
from torch import Tensor, nn
from torch.nn import functional as F

from .cheap import cheap

NETWORK = tiny_network(1234, 10).eval()
POOL_SIZE = 1200
ODD = [(1, 64), (7, 1), (7, 3), (999, 64), (1000, 100)]
"""Budgets and batch sizes that end in every way there is: within the first batch, with a full one, with a rest."""
EVERY = [(budget, batch) for budget in (1, 7, 999, 1000) for batch in (1, 3, 64, 100)]
GRID = [pytest.param(*pair, marks=() if pair in ODD else pytest.mark.slow) for pair in EVERY]
REPEATING = [(3, 3), (7, 1), (7, 100), (999, 3), (1000, 64)]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dualstudent", {"students": 3, "generator_step": "pre_tanh", "optimizer": "adam"}),
    ("dfme", {"directions": 4}),
    ("disguide", {"students": 3, "student_steps": 2, "combine": "vote"}),
    ("maze", {"directions": 3, "student_steps": 2, "replay_size": 50, "optimizer_generator": "adam"}),
    ("random_noise", {"images": "smooth"}),
    ("knockoff", {"strategy": "adaptive"}),
    ("activethief", {"strategy": "k_center", "rounds": 10}),
]


class Watched(BlackBox):
    """Remembers how much was ever asked for with how much left."""

    excess = 0

    def query(self, images: Tensor) -> Tensor:
        self.excess = max(self.excess, len(images) - self.remaining)
        return super().query(images)


def victim(budget: int, *, labels_only: bool = False) -> Watched:
    def answer(images: Tensor) -> Tensor:
        logits = 10 * NETWORK(images)
        return F.one_hot(logits.argmax(dim=1), 10).float() if labels_only else logits.softmax(dim=1)

    return Watched(answer, budget=budget, num_classes=10, image_shape=IMAGE_SHAPE, labels_only=labels_only)


def set_up(attack: str, seen: Victim, batch: int, more: dict[str, Any], build: Any = tiny_network) -> Attack:
    built = cast(Attack, load_class("attack", attack).from_params(cheap(attack, batch) | more))
    drawn = torch.Generator().manual_seed(4321)
    pixels = torch.randint(256, (POOL_SIZE, *IMAGE_SHAPE), generator=drawn, dtype=torch.uint8)
    context = AttackContext(
        device=torch.device("cpu"),
        seed=0,
        precision=torch.float32,
        build_clone=lambda seed: build(seed, 10),
        pool=TensorImages(pixels, torch.zeros(POOL_SIZE, dtype=torch.long)),
    )
    built.setup(seen, context)
    return built


def run(attack: Attack, limit: int) -> StepReport:
    for _ in range(limit):
        report = attack.step()
        if report.done:
            return report
    pytest.fail(f"it has not ended after {limit} steps")


def expect_spent(box: Watched, seen: Victim, report: StepReport) -> None:
    assert box.excess <= 0, "it asked for more than was left"
    assert box.spent <= box.budget
    assert seen.remaining == 0 or report.reason, f"{seen.remaining} left, and no reason given"


@pytest.mark.parametrize(("budget", "batch"), GRID)
@pytest.mark.parametrize("attack", names("attack"))
def test_the_budget_is_spent_and_never_exceeded(attack: str, budget: int, batch: int) -> None:
    box = victim(budget)
    report = run(set_up(attack, box, batch, {}), limit=budget + 1)
    expect_spent(box, box, report)


@pytest.mark.parametrize(("budget", "batch"), ODD)
@pytest.mark.parametrize("attack", names("attack"))
def test_the_budget_holds_where_answers_are_labels(attack: str, budget: int, batch: int) -> None:
    box = victim(budget, labels_only=True)
    report = run(set_up(attack, box, batch, {}), limit=budget + 1)
    expect_spent(box, box, report)


@pytest.mark.parametrize("labels_only", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("budget", "batch"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair == (999, 3) else ()) for pair in REPEATING],
)
@pytest.mark.parametrize("attack", names("attack"))
def test_the_budget_holds_behind_a_recovery_that_repeats(
    attack: str, budget: int, batch: int, labels_only: bool
) -> None:
    box = victim(budget, labels_only=labels_only)
    seen = Averaging(repeats=3).wrap(box)
    report = run(set_up(attack, seen, batch, {}), limit=budget + 1)
    expect_spent(box, seen, report)
    assert box.spent == 3 * (budget // 3)


@pytest.mark.parametrize(("budget", "batch"), ODD)
@pytest.mark.parametrize(("attack", "more"), VARIANTS)
def test_the_budget_holds_for_other_settings(attack: str, more: dict[str, Any], budget: int, batch: int) -> None:
    box = victim(budget)
    report = run(set_up(attack, box, batch, more), limit=budget + 1)
    expect_spent(box, box, report)


@pytest.mark.parametrize("attack", names("attack"))
def test_a_step_after_the_end_is_done_and_asks_nothing(attack: str) -> None:
    box = victim(50)
    finished = set_up(attack, box, 16, {})
    run(finished, limit=51)
    assert finished.step().done
    assert (box.spent, box.excess) == (50, 0)


def pooled(seed: int, num_classes: int) -> nn.Module:
    """A clone that normalizes over the batch alone, as deep networks do once an image is down to one pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))


@pytest.mark.parametrize("budget", [1, 17])
@pytest.mark.parametrize("attack", names("attack"))
def test_a_last_batch_of_one_image_can_be_trained_on(attack: str, budget: int) -> None:
    box = victim(budget)
    stolen = set_up(attack, box, 16, {}, build=pooled)
    expect_spent(box, box, run(stolen, limit=budget + 1))
    assert all(bool(torch.isfinite(weight).all()) for weight in stolen.clone().parameters())


@pytest.mark.parametrize("attack", names("attack"))
def test_the_contract_suite_finds_nothing(attack: str) -> None:
    checks = validate_attack(format_spec(attack, cheap(attack, 64)))
    assert {check.name: check.detail for check in checks if not check.passed} == {}
    assert len(checks) == 8


def test_the_watched_box_would_tell() -> None:
    box = victim(5)
    with pytest.raises(BudgetExceeded):
        box.query(torch.zeros(6, *IMAGE_SHAPE))
    assert box.excess == 1
