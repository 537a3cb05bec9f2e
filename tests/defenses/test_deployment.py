"""The deployed path: nothing that passes through it can be changed by one side behind the other's back."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from msbench.defenses.base import Defense, DefenseContext, Traits, Verdict
from msbench.defenses.deployment import Deployment
from msbench.defenses.rebuilt import Rebuilt
from msbench.errors import ContractViolation
from msbench.targets.target import Target
from torch import Tensor, nn

SHAPE = (1, 6, 6)


@pytest.fixture
def target(context: Callable[[], DefenseContext]) -> Target:
    """A target in evaluation mode, all of whose parameters but one are frozen."""
    target = Target(context().target(), mean=(0.5,), std=(0.5,), num_classes=10, image_shape=SHAPE).eval()
    target.network[0].weight.requires_grad_(True)
    return target


def images(count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def clean(target: Target, asked: Tensor) -> Tensor:
    return target(asked).softmax(dim=1)


@torch.no_grad()
def flatten(network: nn.Module) -> nn.Module:
    """The network, its last weights divided by a hundred in place."""
    *_, last = network.parameters()
    last.div_(100)
    return network


@dataclass(kw_only=True)
class Plain(Defense):
    """Releases what it is given."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class Serves(Plain):
    """Serves what a function makes of the network that it is handed to deploy."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="training")
    deployed: Callable[[nn.Module], nn.Module]

    def deploy(self, target: nn.Module) -> nn.Module:
        return self.deployed(target)


class Erasing(nn.Module):
    """A network that blackens the images that it answers about."""

    def forward(self, images: Tensor) -> Tensor:
        return images.zero_().flatten(1)[:, :10]


@dataclass(kw_only=True)
class Erases(Plain):
    """Blackens the images that it is asked about."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        images.zero_()
        return probs


@dataclass(kw_only=True)
class Remembers(Plain):
    """Spoils, whenever it is asked, what it released and said the time before."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="detection")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.released, self.flagged = torch.zeros(1, 10), torch.zeros(1, dtype=torch.bool)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.released.fill_(0.1)
        self.flagged.fill_(False)
        self.released, self.flagged = probs, torch.ones(len(probs), dtype=torch.bool)
        return self.released

    def verdict(self) -> Verdict:
        return Verdict(self.flagged, self.flagged)


# ---------------------------------------------------------------------------------------------------- the target


def test_a_defense_is_handed_a_copy_that_is_like_the_target(target: Target) -> None:
    handed: list[nn.Module] = []

    def look(network: nn.Module) -> nn.Module:
        handed.append(network)
        return network

    deployed = Deployment(target, Serves(deployed=look))
    assert deployed.network is deployed.target is target
    assert handed[0] is not target and not handed[0].training
    for ours, theirs in zip(target.parameters(), handed[0].parameters(), strict=True):
        assert ours is not theirs and torch.equal(ours, theirs) and ours.requires_grad == theirs.requires_grad


def test_a_network_changed_in_place_is_served_and_measured_against_the_target(target: Target) -> None:
    before, own = clean(target, images()), copy.deepcopy(target)
    flatten(own)
    answered, released = Deployment(target, Serves(deployed=lambda _: own), own).answer(images())
    assert torch.equal(answered, before)
    assert torch.equal(released, clean(own, images()))
    assert not torch.allclose(released, before)


@pytest.mark.parametrize("when", ["prepare", "deploy"])
def test_a_change_in_place_that_would_be_lost_is_refused(target: Target, when: str) -> None:
    own, defense = copy.deepcopy(target), Plain() if when == "prepare" else Serves(deployed=flatten)
    if when == "prepare":
        flatten(own)
    with pytest.raises(ContractViolation, match=r"return the changed network from deploy\(\), or change a copy"):
        Deployment(target, defense, own)


def test_where_and_how_precisely_a_copy_is_kept_is_no_change(target: Target) -> None:
    assert Deployment(target, Plain(), copy.deepcopy(target).double().train()).network is target


# ---------------------------------------------------------------------------------------------- images and answers


@pytest.mark.parametrize("defense", [Erases(), Serves(deployed=lambda _: Erasing())])
def test_whoever_asks_keeps_the_images(target: Target, defense: Defense) -> None:
    deployed, asked = Deployment(target, defense), images()
    answered, _ = deployed.answer(asked)
    assert torch.equal(asked, images())
    assert torch.equal(answered, clean(target, images()))
    deployed.serve(asked)
    assert torch.equal(asked, images())


def test_an_attacker_who_rebuilds_a_defense_keeps_the_images_and_the_answers(
    context: Callable[[], DefenseContext], target: Target
) -> None:
    for spec in ("Erases", "Remembers"):
        rebuilt, asked, probs = Rebuilt(f"{__file__}:{spec}", context()), images(), clean(target, images())
        released = rebuilt.release(probs, asked)
        rebuilt.release(probs, asked)
        assert torch.equal(asked, images())
        assert torch.equal(released, probs)


def test_what_was_released_stays_what_it_is(target: Target) -> None:
    deployed = Deployment(target, Remembers())
    answered, released = deployed.answer(images())
    served, verdict = deployed.serve(images()), deployed.verdict()
    deployed.serve(images(seed=1))
    assert torch.equal(answered, clean(target, images()))
    assert torch.equal(released, answered) and torch.equal(served, answered)
    assert verdict is not None and bool(verdict.flagged.all()) and bool(verdict.refused.all())


def test_a_defense_keeps_what_it_released(target: Target) -> None:
    defense = Remembers()
    _, released = Deployment(target, defense).answer(images())
    released.zero_()
    assert torch.equal(defense.released, clean(target, images()))
