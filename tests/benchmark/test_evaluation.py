"""What is measured of a clone and of a defense, where every number can be worked out by hand."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from msbench.benchmark import transfer
from msbench.benchmark.evaluation import Evaluator
from msbench.benchmark.spec import RunSpec
from msbench.benchmark.traffic import Traffic
from msbench.components import load_class
from msbench.defenses.base import Defense, Traits
from msbench.defenses.deployment import Deployment
from msbench.defenses.modelguard_s import ModelGuardS
from msbench.leaderboard.record import CurvePoint, Record
from msbench.targets.architectures import build_clone
from msbench.targets.datasets.base import TensorImages
from msbench.targets.datasets.embedded import Digits
from msbench.targets.reference import digests
from msbench.targets.target import Target
from torch import Tensor, nn

Steal = Callable[..., Record]

NOISE = RunSpec(attack="random_noise:batch=40", budget=80)
MISBEHAVING = Path(__file__).with_name("misbehaving.py")


def always(*logits: float) -> Target:
    """A network that gives every image these logits."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, len(logits)))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor(logits))
    return Target(network, mean=(0.0,), std=(1.0,), num_classes=len(logits), image_shape=(1, 8, 8)).eval()


SURE = always(5.0, 0.0, 0.0)
THREE_CLASSES: Any = SimpleNamespace(num_classes=3, device="cpu")
"""What a defense takes from its context that learns nothing."""
TOP, REST = math.exp(5) / (math.exp(5) + 2), 1 / (math.exp(5) + 2)


@dataclass(kw_only=True)
class ServesAnother(Defense):
    """Serves a network that is sure of class 1."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="training")

    def deploy(self, target: nn.Module) -> nn.Module:
        return always(0.0, 5.0, 0.0)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class SpoilsOne(Defense):
    """Gives the first image of a batch to class 1."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        first = torch.arange(len(probs))[:, None] == 0
        return torch.where(first, torch.eye(3)[1], probs)


@dataclass(kw_only=True)
class SpoilsWhatComesLater(Defense):
    """Keeps one state for all, and gives all images to class 1 once it has seen a dozen."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen = 0

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.seen += len(images)
        return probs if self.seen <= 12 else torch.eye(3)[[1] * len(probs)]


def test_what_honest_users_ask_is_no_part_of_what_they_pay_later() -> None:
    """Whatever was measured before: the answers of ModelGuard-S's honest users are rounded to the attack's."""
    unseen = measured(SpoilsWhatComesLater())
    for _ in range(20):
        assert unseen.defended_accuracy() == 1.0
    defense = ModelGuardS(epsilon=2.0)
    defense.prepare(THREE_CLASSES)
    evaluator = measured(defense)
    assert evaluator.defended_accuracy() == 1.0
    assert paid(evaluator).l1.max == 0
    flat = torch.tensor([[0.4, 0.3, 0.3]])
    evaluator.deployment.release(flat, torch.zeros(1, 1, 8, 8), "attacker")
    assert paid(evaluator).l1.mean == pytest.approx(2 * (TOP - 0.4), abs=1e-6)


def test_costs_do_not_depend_on_whether_unrelated_images_are_at_hand() -> None:
    with_them, without = measured(SpoilsWhatComesLater()), measured(SpoilsWhatComesLater())
    with_them.outside = TensorImages(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.long))
    assert paid(with_them).shifted == paid(without).shifted
    assert paid(without).shifted.argmax_changed == 0


def measured(defense: Defense, labels: tuple[int, ...] = (0, 0, 0, 0)) -> Evaluator:
    test = TensorImages(torch.full((len(labels), 1, 8, 8), 100, dtype=torch.uint8), torch.tensor(labels))
    return Evaluator(Deployment(SURE, defense), Digits(), test, None, "0123456789ab")


def paid(evaluator: Evaluator, before: float = 1.0) -> Any:
    return evaluator.paid(Traffic(evaluator.deployment, "attacker"), before=before)


def point(queries: int, accuracy: float) -> CurvePoint:
    return CurvePoint(queries=queries, clone_accuracy=accuracy, agreement=accuracy, defended_accuracy=1.0)


def test_a_network_that_is_served_in_the_targets_place_pays_on_the_shifted_copy_as_well() -> None:
    shifted = paid(measured(ServesAnother())).shifted
    assert (shifted.images, shifted.undefended, shifted.defended, shifted.argmax_changed) == (4, 1.0, 0.0, 1.0)
    assert shifted.l1 == pytest.approx(2 * (TOP - REST), abs=1e-6)


def test_the_shifted_copy_is_judged_by_the_mean_distance() -> None:
    found = paid(measured(SpoilsOne()))
    one = TOP + (1 - REST) + REST
    assert (found.shifted.l1, found.l1.mean) == pytest.approx((one / 4, one / 4), abs=1e-6)
    assert (found.l1.max, found.shifted.argmax_changed) == (pytest.approx(one, abs=1e-6), 0.25)


def test_what_answers_cost_is_that_of_released_ones() -> None:
    found = paid(measured(ServesAnother(), labels=(0, 1, 1, 1)), before=0.25)
    assert found.nll == pytest.approx((-math.log(REST) - 3 * math.log(TOP)) / 4, abs=1e-6)
    assert (found.defended_accuracy, found.defended_accuracy_before) == (0.75, 0.25)


def test_queries_are_counted_to_shares_of_the_targets_accuracy() -> None:
    evaluator = measured(SpoilsOne(), labels=(0, 0, 1, 1))
    assert evaluator.accuracy == 0.5
    curve = [point(10, 0.3), point(20, 0.6)]
    stolen = evaluator.stolen(always(1.0, 0.0, 0.0), evaluator.ended(curve, always(1.0, 0.0, 0.0)), seed=0)
    assert (stolen.queries_to_half, stolen.queries_to_90) == (10, 20)
    weak = evaluator.stolen(always(0.0, 0.0, 1.0), evaluator.ended(curve, always(0.0, 0.0, 1.0)), seed=0)
    assert (weak.clone_accuracy, weak.queries_to_half, weak.queries_to_90) == (0.0, 10, None)


def test_a_clones_distance_is_a_mean_over_images() -> None:
    class Halves(nn.Module):
        """Sure of class 0 for the first half of a batch, and of class 1 for the other."""

        def forward(self, images: Tensor) -> Tensor:
            second = torch.arange(len(images)) >= len(images) // 2
            return 5.0 * torch.eye(3)[second.long()] + 0 * images.flatten(1).sum(dim=1, keepdim=True)

    evaluator = measured(SpoilsOne())
    clone = Halves()
    stolen = evaluator.stolen(clone, evaluator.ended([point(10, 0.5)], clone), seed=0)
    assert stolen.l1 == pytest.approx((TOP - REST), abs=1e-6)
    assert (stolen.clone_accuracy, stolen.agreement) == (0.5, 0.5)


def test_adversarial_images_are_to_fool_the_target_and_not_what_is_served_in_its_place() -> None:
    evaluator = measured(ServesAnother())
    clone = always(1.0, 0.0, 0.0)
    found = evaluator.stolen(clone, evaluator.ended([point(10, 1.0)], clone), seed=0).transfer
    assert (found.fgsm, found.bim, found.pgd, found.images) == (0.0, 0.0, 0.0, 4)


def test_each_transfer_attack_takes_its_own_steps_and_one_of_them_begins_at_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, float]] = []
    starts: list[Tensor] = []

    def ascend(model: Any, center: Tensor, start: Tensor, *_: Any, steps: int, size: float) -> Tensor:
        calls.append((steps, round(size, 6)))
        starts.append(start - center)
        return center

    monkeypatch.setattr(transfer, "ascend", ascend)
    x, y = torch.full((5, 1, 8, 8), 0.5), torch.zeros(5, dtype=torch.long)
    for seed in (3, 4):
        transfer.transfer_success(SURE, SURE, x, y, epsilon=0.1, seed=seed)
    assert calls == [(1, 0.1), (10, 0.01), (10, 0.025)] * 2
    assert [bool(start.any()) for start in starts] == [False, False, True] * 2
    assert starts[2].abs().max() <= 0.1
    assert not torch.equal(starts[2], starts[5])


# --------------------------------------------------------------------------------------- what runs hand around


@pytest.mark.usefixtures("brief")
def test_a_defender_has_the_training_images_and_the_targets_architecture(steal: Steal) -> None:
    spec = f"{MISBEHAVING}:Curious"
    record = steal(replace(NOISE, defense=spec))
    assert record.spec.clone == "lenet5:norm=batch,hidden=128"
    network = build_clone("lenet5", num_classes=10, image_shape=(1, 8, 8), seed=0)
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert load_class("defense", spec).seen == (1347, weights)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("seed", [0, 2])
def test_the_copy_that_is_asked_for_is_attacked(steal: Steal, seed: int) -> None:
    record = steal(replace(NOISE, target_seed=seed))
    assert record.target is not None
    assert record.target.digest == digests("digits/lenet5", record.spec.target.version)[seed]
