"""Gradient redirection: the solver against a general one, the worths against Jacobians, and the surrogate."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.defenses.base import DefenseContext
from msbench.defenses.grad_redirection import GradientRedirection, redirect
from msbench.defenses.rebuilt import withheld
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack, vstack
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]

EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def highest(clean: np.ndarray, worth: np.ndarray, epsilon: float) -> float:
    """The largest z·worth on the simplex within an L1 distance of y, by a general solver."""
    if epsilon == 0:  # one point, which the solver's tolerances may miss
        return float(worth @ clean)
    classes = len(clean)
    identity = eye_array(classes)
    differences = csr_array(np.r_[np.zeros(classes), np.ones(classes)][None])
    below = vstack([hstack([identity, -identity]), hstack([-identity, -identity]), differences]).tocsr()
    total = np.r_[np.ones(classes), np.zeros(classes)][None]
    objective = np.r_[-worth, np.zeros(classes)]
    found = linprog(objective, below, np.r_[clean, -clean, epsilon], total, [clean.sum()], options=EXACT)
    assert found.status == 0, found.message
    return -float(found.fun)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    classes=st.sampled_from([2, 3, 10, 43, 100]),
    scale=st.sampled_from([0.0, 1.0, 5.0, 40.0]),
    tied=st.booleans(),
    epsilon=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]),
)
def test_is_what_a_general_solver_finds(seed: int, classes: int, scale: float, tied: bool, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = (scale * torch.randn(4, classes, generator=generator, dtype=torch.float64)).softmax(dim=1)
    worth = torch.randn(4, classes, generator=generator, dtype=torch.float64)
    worth = worth.round() if tied else worth
    released = redirect(clean, worth, epsilon / 2)
    assert float(released.min()) >= 0
    torch.testing.assert_close(released.sum(dim=1), clean.sum(dim=1), rtol=0, atol=1e-12)
    assert float((released - clean).abs().sum(dim=1).max()) <= epsilon + 1e-12
    for answer, probs, values in zip(released.numpy(), clean.numpy(), worth.numpy(), strict=True):
        assert values @ answer == pytest.approx(highest(probs, values, epsilon), abs=1e-7)


def test_by_hand() -> None:
    clean = torch.tensor([[0.2, 0.5, 0.1, 0.2], [0.0, 0.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25]])
    worth = torch.tensor([[-9.0, 1.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.5]])
    expected = torch.tensor([[0.0, 0.75, 0.05, 0.2], [0.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.25, 0.25]])
    torch.testing.assert_close(redirect(clean, worth, 0.25), expected)


def jacobian(network: nn.Module, image: Tensor) -> Tensor:
    """The gradients (K, D) of log p_k with respect to all weights, by K backward passes."""
    weights = list(network.parameters())
    rows = []
    for value in network(image[None]).log_softmax(dim=1)[0]:
        gradients = torch.autograd.grad(value, weights, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


@pytest.mark.parametrize("direction", ["all_ones", "min_inner_product", "orthogonal", "watermark"])
def test_worths_are_inner_products_with_the_direction(
    direction: str, context: Make, answers: Draw, images: Draw
) -> None:
    defense = GradientRedirection.from_params({"direction": direction, "surrogate": "untrained", "epsilon": 0.4})
    made = context(5)
    defense.prepare(made)
    probs, asked = answers(6, 5), images(6)
    worths = defense.worth(asked, probs)
    assert float((defense.release(probs, asked) - probs).abs().sum(dim=1).max()) <= 0.4 + 1e-6
    network = defense.network.requires_grad_(True)
    for image, clean, worth, released in zip(asked, probs, worths, defense.release(probs, asked), strict=True):
        gradients = jacobian(network, image)
        if direction == "all_ones":
            towards = torch.ones(gradients.shape[1])
        elif direction == "min_inner_product":
            towards = -clean @ gradients
        elif direction == "orthogonal":
            step = clean @ gradients
            towards = torch.ones_like(step) - step.sum() / step.square().sum() * step
            assert float(F.cosine_similarity(towards, step, dim=0)) == pytest.approx(0, abs=1e-5)
        else:
            towards = torch.cat([part.flatten() for part in defense.towards.values()])
        torch.testing.assert_close(worth, gradients @ towards, rtol=1e-4, atol=1e-4)
        # The released answer beats each one-hot answer that the same budget reaches, and the clean one.
        others = torch.eye(5)
        steps = (0.4 / (others - clean).abs().sum(dim=1, keepdim=True)).clamp_max(1)
        rivals = torch.cat([clean[None], torch.lerp(clean.expand(5, 5), others, steps)])
        assert float(released @ worth) >= float((rivals @ worth).max()) - 1e-4


def test_between_two_classes_nothing_is_orthogonal_to_the_clean_step(
    context: Make, answers: Draw, images: Draw
) -> None:
    """All worths are zero then, but for rounding, whose sign must not decide what is released."""
    defense = GradientRedirection(direction="orthogonal", surrogate="untrained")
    defense.prepare(context(2))
    probs, asked = answers(50, 2), images(50)
    everywhere = GradientRedirection(surrogate="untrained")
    everywhere.prepare(context(2))
    scale = everywhere.worth(asked, probs).abs().median()
    assert float((defense.worth(asked, probs).abs() / scale).median()) < 1e-3
    assert torch.equal(defense.release(probs, asked), probs)


def test_the_watermark_teaches_one_image_one_label(context: Make) -> None:
    defense = GradientRedirection(direction="watermark", surrogate="untrained")
    made = context(3)
    defense.prepare(made)
    towards = torch.cat([part.flatten() for part in defense.towards.values()])
    pixels, _ = made.data().take(torch.arange(128))
    network = defense.network.requires_grad_(True)
    lessons = torch.cat([jacobian(network, image) for image in pixels])
    assert int((lessons - towards).abs().amax(dim=1).lt(1e-5).sum()) == 1


class Convolutions(TorchDispatchMode):
    """Notes how many channels each of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.channels.append(len(args[1]))
        return func(*args, **(kwargs or {}))


class Standardized(nn.Conv2d):
    """Convolves with what it makes of its weights, which changes otherwise than they do."""

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight * self.weight.mean(dim=(1, 2, 3), keepdim=True), self.bias)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("direction", "first", "last"), [("all_ones", 20, 20), ("watermark", 4, 8)])
def test_worths_are_those_of_torchs_forward_mode_for_less(
    direction: str, first: int, last: int, bias: bool, context: Make, answers: Draw, images: Draw
) -> None:
    """The first convolution's images have no derivative, and channels that move alike are one, those of 20 images side
    by side: not those of groups, or of what a network makes of its weights."""
    defense = GradientRedirection.from_params({"direction": direction, "surrogate": "untrained"})
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=bias),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.MaxPool2d(2, return_indices=False),
        nn.Conv2d(4, 8, 3, padding=1, bias=bias),
        Standardized(8, 6, 2, bias=bias),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    defense.prepare(replace(context(5), new_surrogate=lambda _: network))
    asked, weights = images(20), dict(network.named_parameters())
    expected = jvp(defense._logs(asked), (weights,), (defense.towards,))[1]
    with Convolutions() as counted:
        worth = defense.worth(asked, answers(20, 5))
    if direction == "watermark":
        assert torch.equal(worth, expected)
    torch.testing.assert_close(worth, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert counted.channels == [4, first, 4, 4, 4, 8, last, 8, 6, 6, 6]


def rectified_in_place() -> nn.Module:
    convolution = nn.Conv2d(1, 3, 2, stride=(1, 2), padding=(1, 0), dilation=2)
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(5))


def without_convolutions() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(7, bias=False), nn.Tanh(), nn.Linear(7, 5))


class Twice(nn.Module):
    """Pools what one convolution makes of two others."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), nn.LazyLinear(5)

    def forward(self, images: Tensor) -> Tensor:
        left = self.left(images)
        return self.last(F.max_pool2d(self.right(images) + F.max_pool2d(left, 1), 2).flatten(1))


@torch.no_grad()
@pytest.mark.parametrize("make", [rectified_in_place, without_convolutions, Twice])
def test_what_stands_for_all_channels_is_what_was_just_computed(
    make: Callable[[], nn.Module], context: Make, answers: Draw, images: Draw
) -> None:
    network, asked = make(), images(20)
    network(asked)  # which tells lazy layers their size
    defense = GradientRedirection(surrogate="untrained")
    defense.prepare(replace(context(5), new_surrogate=lambda _: network))
    expected = jvp(defense._logs(asked), (dict(network.named_parameters()),), (defense.towards,))[1]
    worth = defense.worth(asked, answers(20, 5))
    torch.testing.assert_close(worth, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("direction", ["min_inner_product", "orthogonal"])
def test_an_image_is_answered_alike_in_any_company(direction: str, context: Make, answers: Draw, images: Draw) -> None:
    defense = GradientRedirection.from_params({"direction": direction, "surrogate": "untrained"})
    defense.prepare(context())
    probs, asked = answers(20), images(20)
    together = defense.release(probs, asked)
    alone = torch.cat([defense.release(probs[i : i + 1], asked[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def disagreement(network: nn.Module, made: DefenseContext, pixels: Tensor) -> float:
    """The cross-entropy of a network's answers with the target's, above the target's own entropy."""
    target = made.target()(pixels).log_softmax(dim=1)
    return float(F.kl_div(network(pixels).log_softmax(dim=1), target, reduction="batchmean", log_target=True))


@torch.no_grad()
def test_the_surrogate_learns_what_the_target_answers(context: Make) -> None:
    made = context(seed=3)
    untrained, own, other = (GradientRedirection(surrogate=name, lr=0.01) for name in ("untrained", "data", "digits"))
    for defense in (untrained, own, other):
        defense.prepare(made)
        assert not defense.network.training
        assert not any(weight.requires_grad for weight in defense.network.parameters())
    for defense, images in ((own, made.data()), (other, made.auxiliary("digits"))):
        pixels, _ = images.take(torch.arange(128))
        assert disagreement(defense.network, made, pixels) < 0.5 * disagreement(untrained.network, made, pixels)
    weights = [torch.cat([part.flatten() for part in d.network.parameters()]) for d in (untrained, own, other)]
    assert not torch.equal(weights[1], weights[2])


def test_the_budget_and_the_direction_are_not_trained_for(context: Make, images: Draw) -> None:
    first, second = GradientRedirection(), GradientRedirection(epsilon=0.1, direction="watermark")
    first.prepare(context())
    second.prepare(context())
    assert torch.equal(first.network(images(3)), second.network(images(3)))


def test_declares_what_the_surrogate_is_made_of(context: Make) -> None:
    assert GradientRedirection().traits.needs == ("surrogate", "data")
    assert GradientRedirection(surrogate="pool").traits.needs == ("surrogate", "auxiliary", "queries")
    untrained = GradientRedirection(surrogate="untrained")
    assert untrained.traits.needs == ("surrogate",)
    untrained.prepare(replace(context(), target=withheld, data=withheld, auxiliary=withheld))
