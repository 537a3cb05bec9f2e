"""InI: its terms in closed form for a linear student, conflicting gradients by hand, and what training does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msbench.benchmark.images import auxiliary
from msbench.defenses.base import DefenseContext
from msbench.defenses.ini import InI, endless, project_conflicting, with_gradients
from msbench.errors import UsageError
from msbench.targets.datasets.base import TensorImages
from msbench.targets.datasets.loading import load_dataset
from msbench.targets.training import Recipe
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(seed: int) -> nn.Module:
    layer = nn.Linear(36, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 36, generator=rng(seed)))
    return nn.Sequential(nn.Flatten(), layer)


def closed_form(divergence: str, network: nn.Module, student: nn.Module, images: Tensor) -> Tensor:
    """The gradient of a linear student's divergence: residuals times pixels, averaged over images."""
    taught, own = network(images).softmax(dim=1), student(images).softmax(dim=1)
    if divergence == "forward":
        residual = own - taught
    else:
        ratio = own.log() - taught.log()
        residual = own * (ratio - (own * ratio).sum(dim=1, keepdim=True))
    return residual.T @ images.flatten(1) / len(images)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_the_terms_are_the_papers(divergence: str, images: Draw) -> None:
    known, others, labels = images(6).double(), images(5, seed=1).double(), torch.arange(6) % 4
    network, student = linear(0), linear(1)
    params = {"beta": 0.5, "gamma": 0.25, "delta": 2, "epsilon": 100, "divergence": divergence}
    terms = InI.from_params(params).losses(network, student, known, labels, others)

    def apart(pixels: Tensor) -> Tensor:
        logs = network(pixels).log_softmax(dim=1)
        return (student(pixels) - logs + logs.mean(dim=1, keepdim=True)).abs().mean()

    wanted = (student(known).softmax(dim=1) - F.one_hot(labels, 4)).T @ known.flatten(1) / 6
    learned = closed_form(divergence, network, student, known)
    expected = [
        F.cross_entropy(network(known), labels),
        -0.5 * apart(known),
        0.25 * apart(others),
        2 * (learned * wanted).sum() / learned.norm() / wanted.norm(),
        100 * closed_form(divergence, network, student, others).abs().mean(),
    ]
    torch.testing.assert_close(torch.stack(terms), torch.stack(expected))
    weights = list(network.parameters())
    for ours, theirs in zip(terms, expected, strict=True):  # the defended network learns through the student
        [mine], [other] = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (ours, theirs))
        torch.testing.assert_close(mine, other)


def test_terms_without_weight_are_left_out(images: Draw) -> None:
    nothing = InI(beta=0, gamma=0, delta=0, epsilon=0)
    known, labels = images(6).double(), torch.arange(6) % 4
    [loss] = nothing.losses(linear(0), linear(1), known, labels, known)
    torch.testing.assert_close(loss, F.cross_entropy(linear(0)(known), labels))


def test_gradients_that_agree_are_averaged_and_others_are_made_orthogonal() -> None:
    agreeing = torch.rand(3, 8, generator=rng())
    torch.testing.assert_close(project_conflicting(agreeing, rng()), agreeing.mean(dim=0))
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    # (1, 0) off (-1, 1) is (1/2, 1/2), and (-1, 1) off (1, 0) is (0, 1).
    torch.testing.assert_close(project_conflicting(torch.stack([first, second]), rng()), torch.tensor([0.25, 0.75]))
    against = torch.stack([first, -3 * first])
    torch.testing.assert_close(project_conflicting(against, rng()), torch.zeros(2))


def test_the_projected_gradient_is_what_is_followed() -> None:
    weights = [torch.randn(3, generator=rng()).requires_grad_(), torch.randn(2, generator=rng(1)).requires_grad_()]
    losses = [weights[0].square().sum() + weights[1].sum(), -2 * weights[0].square().sum() - weights[1].prod()]
    each = [torch.cat(torch.autograd.grad(loss, weights, retain_graph=True)) for loss in losses]
    loss = with_gradients(weights, losses, rng())
    assert float(loss.detach()) == 0
    followed = torch.cat(torch.autograd.grad(loss, weights))
    torch.testing.assert_close(followed, project_conflicting(torch.stack(each), rng()))


def test_unrelated_images_come_round_and_round() -> None:
    pixels = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    batches = endless(TensorImages(pixels, torch.zeros(7)), 3, rng())
    rounds = [torch.cat([next(batches) for _ in range(3)]).mul(255).round().flatten().tolist() for _ in range(2)]
    assert [sorted(seen) for seen in rounds] == [list(range(7))] * 2
    assert rounds[0] != rounds[1]


def test_the_pool_is_the_one_that_the_target_s_data_set_declares() -> None:
    digits, patches = load_dataset("digits"), load_dataset("patches")
    assert auxiliary(digits, "pool") == patches
    assert auxiliary(patches, "digits") == digits
    with pytest.raises(UsageError, match="declares no pool"):
        auxiliary(patches, "pool")


def answers(context: DefenseContext, images: Tensor, **params: float) -> Tensor:
    defense = InI(**params)  # type: ignore[arg-type]
    defense.prepare(context)
    with torch.no_grad():
        return defense.deploy(context.target())(images).softmax(dim=1)


def test_answers_on_unrelated_images_become_those_of_a_student_that_knows_nothing(context: Make) -> None:
    given = replace(context(num_classes=4), recipe=Recipe(epochs=40, batch=64, lr=1e-2, weight_decay=0))
    unrelated, _ = given.auxiliary("pool").take(torch.arange(128))
    plain = answers(given, unrelated, gamma=0, delta=0, epsilon=0).amax(dim=1).mean()
    assert float(answers(given, unrelated).amax(dim=1).mean()) < float(plain) - 0.1


def test_training_is_reproducible_from_the_seed(
    context: Make, images: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for home, seed in (("one", 0), ("two", 0), ("two", 1)):
        monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / home))
        given = replace(context(seed=seed), recipe=Recipe(epochs=2, batch=32, lr=1e-3, weight_decay=0))
        found.append(answers(given, images(9)))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_training_follows_the_projected_gradients(context: Make, monkeypatch: pytest.MonkeyPatch, images: Draw) -> None:
    """What is brought down has their gradient and no value, which the sum of the losses would have."""
    values: list[float] = []

    def train(*_: object, objective: Callable[[Tensor, Tensor], Tensor], **__: object) -> None:
        values.append(objective(images(6), torch.arange(6) % 4).item())

    monkeypatch.setattr("msbench.defenses.ini.train", train)
    InI().prepare(context(4, seed=517))
    assert values == pytest.approx([0.0], abs=1e-5)
