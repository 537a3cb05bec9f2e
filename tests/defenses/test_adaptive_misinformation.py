"""Adaptive misinformation: the gate, its losses, and what training does to the two networks."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from msbench.benchmark.cli.wording import family
from msbench.defenses.adaptive_misinformation import AdaptiveMisinformation, misleading_loss
from msbench.defenses.base import DefenseContext
from msbench.targets.datasets.base import TensorImages
from msbench.targets.training import Recipe
from torch import Tensor
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]
RECIPE = Recipe(epochs=60, batch=64, lr=1e-2, weight_decay=0)


def stripes(rows: bool, *, seed: int) -> TensorImages:
    """256 noisy 6x6 images with one bright row or column, which is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(256) % 6
    bright = F.one_hot(labels, 6)[:, :, None] if rows else F.one_hot(labels, 6)[:, None, :]
    pixels = 160 * bright + torch.randint(0, 60, (256, 6, 6), generator=generator)
    return TensorImages(pixels.byte().unsqueeze(1), labels)


@pytest.fixture(scope="module")
def learned(context: Make) -> DefenseContext:
    """Rows are the target's data, columns are unrelated."""
    return replace(
        context(6), data=lambda: stripes(True, seed=0), auxiliary=lambda _: stripes(False, seed=1), recipe=RECIPE
    )


def test_the_gate_is_hard(context: Make, images: Draw) -> None:
    defense = AdaptiveMisinformation(tau=0.6)
    defense.prepare(replace(context(3), recipe=replace(RECIPE, epochs=1)))
    probs = torch.tensor([[0.61, 0.39, 0.0], [0.59, 0.41, 0.0], [0.6, 0.3, 0.1]])
    asked = images(3)
    misleading = defense.networks["misleading"](asked).softmax(dim=1)
    released = defense.release(probs, asked)
    torch.testing.assert_close(released[0], probs[0], rtol=0, atol=1e-40)
    torch.testing.assert_close(released[1], misleading[1], rtol=0, atol=1e-6)
    halfway = (probs[2] + misleading[2]) / 2
    torch.testing.assert_close(released[2], halfway, rtol=0, atol=1e-3)  # 0.6 in float32 is a little above 0.6


def test_losses_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    expected = -(torch.tensor([0.5, 0.9]).log()).mean()
    torch.testing.assert_close(misleading_loss(logits, torch.tensor([0, 2])), expected)
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = misleading_loss(certain, torch.tensor([0]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(200.0)
    torch.testing.assert_close(certain.grad, torch.tensor([[1.0, -1.0]]))
    uniform = torch.full((2, 3), 1 / 3)
    exposed = AdaptiveMisinformation(exposure=2.0).exposed_loss(logits[:1], torch.tensor([0]), logits)
    torch.testing.assert_close(exposed, -torch.tensor(0.5).log() + 2 * F.cross_entropy(logits, uniform))


def test_one_network_learns_the_classes_and_the_other_avoids_them(learned: DefenseContext) -> None:
    defense = AdaptiveMisinformation()
    defense.prepare(learned)
    served = defense.deploy(learned.target())
    pixels, labels = stripes(True, seed=2).take(torch.arange(256))
    others, _ = stripes(False, seed=3).take(torch.arange(256))
    answers, unrelated = served(pixels).softmax(dim=1), served(others).softmax(dim=1)
    assert float((answers.argmax(dim=1) == labels).float().mean()) > 0.95
    assert float(answers.amax(dim=1).mean()) > 0.9
    assert float(unrelated.amax(dim=1).mean()) < 0.5
    avoided = defense.networks["misleading"](pixels).softmax(dim=1).gather(1, labels[:, None])
    assert float(avoided.mean()) < 0.05
    assert not any(parameter.requires_grad for parameter in served.parameters())


def test_exposure_is_what_makes_the_target_uncertain(learned: DefenseContext) -> None:
    others, _ = stripes(False, seed=3).take(torch.arange(256))
    decided = []
    for exposure in (0.0, 1.0):
        defense = AdaptiveMisinformation(exposure=exposure)
        defense.prepare(learned)
        answers = defense.deploy(learned.target())(others).softmax(dim=1)
        decided.append(float((answers - 1 / 6).abs().sum(dim=1).mean()))
    assert decided[1] < 0.7 * decided[0]


def test_the_target_can_be_served_as_it_is(learned: DefenseContext) -> None:
    """And is an output defense then: by default another network is, which is ranked by its training."""
    defense = AdaptiveMisinformation(served="target")
    defense.prepare(learned)
    target = learned.target()
    assert defense.deploy(target) is target
    assert family(defense.traits) == "deterministic"
    assert family(AdaptiveMisinformation().traits) == family(AdaptiveMisinformation.traits) == "training"
    others, _ = stripes(False, seed=3).take(torch.arange(256))  # on these it is what is released
    tops = target(others).argmax(dim=1, keepdim=True)
    assert float(defense.networks["misleading"](others).softmax(dim=1).gather(1, tops).mean()) < 0.05
    pixels, labels = stripes(True, seed=2).take(torch.arange(256))
    avoided = defense.networks["misleading"](pixels).softmax(dim=1).gather(1, labels[:, None])
    assert float(avoided.mean()) < 0.05


def test_the_named_data_set_is_asked_for(context: Make) -> None:
    asked: list[str] = []

    def auxiliary(name: str) -> TensorImages:
        asked.append(name)
        return stripes(False, seed=1)

    for defense in (AdaptiveMisinformation(), AdaptiveMisinformation(unrelated="svhn")):
        defense.prepare(replace(context(6), auxiliary=auxiliary, recipe=replace(RECIPE, epochs=1)))
    assert asked == ["pool", "svhn"]
