"""A defense under the contract suite: built afresh, asked, and its answers compared.

Answers are made up, of 2 to 1000 classes and of every kind that a target can give, and the images are small and random.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..defenses.base import DefenseContext, Traits, load_defense
from ..defenses.deployment import Deployment
from ..targets.datasets.base import TensorImages
from ..targets.target import Target
from ..targets.training import Recipe
from .checks import IMAGE_SHAPE, Broken, in_words, tiny_images, tiny_network
from .reliability import beyond_chance
from .traffic import account_name

CLASSES = (10, 2, 43, 100, 1000)
"""Numbers of classes K to try; the first that the defense accepts is used where one is enough."""
TOLERANCE = 1e-6
"""How far apart answers may be that should be equal: batches of other sizes round differently."""
CUSTOMER, OTHER = (account_name("contract suite", who) for who in ("customer", "another"))
"""The accounts that ask; a name tells a defense nothing."""

_RECIPE = Recipe(epochs=2, batch=32, lr=1e-3, weight_decay=0)
"""How long a defense trains that trains as its target was: eight steps."""
_REPEATS = 32
"""Answers of a stochastic defense that are averaged."""

Questions = tuple[Tensor, Tensor]
"""The target's answers (N, K) and the images (N, 1, 8, 8) that they are about."""


@dataclass(frozen=True)
class Subject:
    """The defense under test, built afresh for every use."""

    spec: str
    classes: tuple[int, ...]
    """The numbers of classes that it accepts."""
    device: torch.device

    @property
    def traits(self) -> Traits:
        """What it declares."""
        return load_defense(self.spec).traits

    def fresh(self, num_classes: int | None = None) -> Deployment:
        """A new instance in front of the target, prepared with the same seed each time."""
        return deployed(self.spec, num_classes or self.classes[0], self.device)

    def questions(self, count: int, num_classes: int | None = None, *, seed: int = 0) -> Questions:
        """Generic answers about random images."""
        generator = torch.Generator().manual_seed(seed)
        probs = _generic(count, num_classes or self.classes[0], generator)
        return probs.to(self.device), torch.rand(count, *IMAGE_SHAPE, generator=generator).to(self.device)

    def suspicious(self) -> Questions:
        """What detectors notice: some ordinary queries, then copies of one image, changed from hardly to altogether.

        Many are so near each other, distances have no usual size, and the copies have one answer.
        """
        probs, images = self.questions(64)
        answer, image = self.questions(1, seed=1)
        _, others = self.questions(192, seed=2)
        order = torch.randperm(192, generator=torch.Generator().manual_seed(3))
        changed = torch.logspace(-3, 0, 192, device=self.device)[order.to(self.device)]
        copies = image + changed.view(-1, 1, 1, 1) * (others - image)
        return torch.cat([probs, answer.expand(192, -1)]), torch.cat([images, copies])


def deployed(spec: str, num_classes: int, device: torch.device) -> Deployment:
    """A new defense in front of an untrained target, given what it declares that it needs and nothing else."""
    defense, target = load_defense(spec), _target(num_classes, device)
    own = copy.deepcopy(target)

    def images(seed: int) -> TensorImages:
        drawn = tiny_images(seed, num_classes)
        return TensorImages(drawn.pixels, drawn.labels, device=device)

    defense.prepare(
        DefenseContext(
            num_classes=num_classes,
            image_shape=IMAGE_SHAPE,
            device=device,
            seed=0,
            new_surrogate=lambda seed: tiny_network(seed, num_classes).to(device),
            target=lambda: own,
            data=lambda: images(2),
            auxiliary=lambda _: images(3),
            recipe=_RECIPE,
        ).granted(defense)
    )
    return Deployment(target, defense, own)


@cache
def _target(num_classes: int, device: torch.device) -> Target:
    network = tiny_network(1, num_classes)
    target = Target(network, mean=(0.0,), std=(1.0,), num_classes=num_classes, image_shape=IMAGE_SHAPE)
    return target.to(device).eval().requires_grad_(False)


# --------------------------------------------------------------------------------------- asking and comparing


@torch.no_grad()
def ask(instance: Deployment, probs: Tensor, images: Tensor, account: str | None = CUSTOMER) -> Tensor:
    """The checked answer (N, K) to the target's, or, where the defense serves another network, to that one's."""
    if instance.network is not instance.target:
        probs = instance.network(images.clone()).float().softmax(dim=1)
    return release(instance, probs, images, account)


@torch.no_grad()
def release(instance: Deployment, probs: Tensor, images: Tensor, account: str | None = CUSTOMER) -> Tensor:
    """The checked answer (N, K); the defense gets copies, so that it cannot alter the questions."""
    released = instance.release(probs.clone(), images.clone(), account)
    instance.settle()
    return released


def ask_often(
    subject: Subject, instance: Deployment, probs: Tensor, images: Tensor, account: str | None = CUSTOMER
) -> Tensor:
    """Answers (R, N, K) to the same questions, R being 1 unless the defense is stochastic and keeps no state."""
    repeats = _REPEATS if subject.traits.stochastic and not subject.traits.stateful else 1
    return torch.stack([ask(instance, probs, images, account) for _ in range(repeats)])


def ask_in_turn(subject: Subject, questions: Sequence[Questions], num_classes: int | None = None) -> list[Tensor]:
    """The answers of one fresh instance to several batches, in that order."""
    instance = subject.fresh(num_classes)
    return [ask_often(subject, instance, *each) for each in questions]


def singly(questions: Questions) -> list[Questions]:
    """The same questions as batches of one."""
    probs, images = questions
    return [(probs[i : i + 1], images[i : i + 1]) for i in range(len(probs))]


def expect_equal(first: Tensor, second: Tensor, complaint: str) -> None:
    """Compare mean answers (R, N, K) up to rounding and chance."""
    variance = first.var(dim=0, correction=0) + second.var(dim=0, correction=0)
    chance = 6 * (variance / len(first)).sqrt()
    apart = (first.mean(dim=0) - second.mean(dim=0)).abs()
    if bool((apart > chance + TOLERANCE).any()):
        raise Broken(f"{complaint} (probabilities differ by up to {apart.max():.3g})")


def expect_as_far(probs: Tensor, first: Tensor, second: Tensor, complaint: str) -> None:
    """Compare how far answers (R, N, K) are from the target's (N, K) on average, up to chance."""
    costs = [(answers - probs).abs().sum(dim=-1).mean(dim=0) for answers in (first, second)]
    gap = costs[0] - costs[1]
    if beyond_chance(gap) or beyond_chance(-gap):
        means = " and ".join(f"{cost.mean():.3g}" for cost in costs)
        raise Broken(f"{complaint} (mean L1 distances from the target's answers are {means})")


def _generic(count: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Flat, ordinary and confident answers in turn, (N, K)."""
    scale = torch.tensor([1.0, 3.0, 10.0]).repeat(count // 3 + 1)[:count, None]
    return (scale * torch.randn(count, num_classes, generator=generator)).softmax(dim=1)


def _kinds(num_classes: int) -> dict[str, Tensor]:
    """Batches of answers (N, K) of every kind that a target can give."""
    one_hot = F.one_hot(torch.arange(num_classes)[:: max(1, num_classes // 8)], num_classes).float()
    every_other = (torch.arange(num_classes) % 2 == 0).float()[None]
    close = torch.full((4, num_classes), 0.2 / num_classes)
    close[:, 0], close[:, 1] = 0.4, 0.4 + torch.tensor([2e-5, 1e-4, 5e-4, 9e-4])  # what ties goes to the first class
    return {
        "random": _generic(48, num_classes, torch.Generator().manual_seed(num_classes)),
        "one-hot": one_hot,
        "nearly one-hot": 0.999999 * one_hot + 0.000001 / num_classes,
        "tied": torch.cat([(one_hot + one_hot.roll(1, dims=1)) / 2, every_other / every_other.sum()]),
        "uniform": torch.full((3, num_classes), 1 / num_classes),
        "close": close / close.sum(dim=1, keepdim=True),
    }


def every_answer(subject: Subject) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What was asked in words, the target's answers (N, K), and what a fresh instance makes of them."""
    for num_classes in subject.classes:
        instance = subject.fresh(num_classes)
        for kind, answers in _kinds(num_classes).items():
            probs = answers.to(subject.device)
            images = torch.rand(len(probs), *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1)).to(subject.device)
            asked = f"{kind} answers of {num_classes} classes"
            try:
                released = release(instance, probs, images)
            except Exception as error:  # say what was asked, whatever went wrong
                raise Broken(f"{in_words(error)} (given {asked})") from error
            yield asked, probs, released
