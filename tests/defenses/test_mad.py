"""MAD in closed form, against the Jacobian of the official procedure."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from msbench.defenses.base import DefenseContext
from msbench.defenses.mad import MAD, most_deviating_class
from msbench.defenses.mad_argmax import MADArgmax
from msbench.targets.architectures import build_clone, build_network
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]


def jacobian(surrogate: nn.Module, image: Tensor) -> Tensor:
    """Gradients (K, D) of -log p_k with respect to the last layer's weight, by K backward passes."""
    weight = list(surrogate.parameters())[-2]
    losses = -surrogate(image[None]).log_softmax(dim=1)[0]
    rows = [torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten() for loss in losses]
    return torch.stack(rows)


def best_vertex(gradients: Tensor, answer: Tensor, *, unit: bool) -> int:
    """The one-hot answer whose gradient is furthest from that under ``answer``, by enumeration."""
    candidates, clean = gradients, answer @ gradients
    if unit:
        candidates, clean = F.normalize(candidates, dim=1), F.normalize(clean, dim=0)
    return int((candidates - clean).square().sum(dim=1).argmax())


@pytest.mark.parametrize("objective", ["unit", "raw"])
@pytest.mark.parametrize("num_classes", [2, 10, 43])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_agrees_with_the_jacobian(
    objective: str, num_classes: int, scale: float, context: Make, answers: Draw, images: Draw
) -> None:
    mad = MAD.from_params({"epsilon": 0.7, "objective": objective})
    mad.prepare(context(num_classes))
    surrogate = copy.deepcopy(mad.surrogate).double().requires_grad_(True)
    probs, asked = answers(12, num_classes, scale=scale), images(12)
    released = mad.release(probs, asked)
    for image, clean, answer in zip(asked.double(), probs.double(), released.double(), strict=True):
        vertex = torch.zeros(num_classes, dtype=torch.float64)
        vertex[best_vertex(jacobian(surrogate, image), clean, unit=objective == "unit")] = 1
        step = min(1.0, 0.7 / float((clean - vertex).abs().sum()))
        torch.testing.assert_close(answer, (1 - step) * clean + step * vertex, rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 2.0])
def test_spends_the_budget_and_no_more(epsilon: float, context: Make, answers: Draw, images: Draw) -> None:
    mad = MAD(epsilon=epsilon)
    mad.prepare(context())
    probs = answers(200)
    distance = (mad.release(probs, images(200)).double() - probs.double()).abs().sum(dim=1)
    assert float(distance.max()) <= epsilon + 1e-6
    if epsilon < 1:  # the class it moves towards has little mass, so that the whole budget can be spent
        torch.testing.assert_close(distance, torch.full_like(distance, epsilon), rtol=0, atol=1e-6)


def test_the_raw_objective_picks_the_least_likely_class(context: Make, answers: Draw, images: Draw) -> None:
    mad = MAD(epsilon=2.0, objective="raw")
    mad.prepare(context())
    assert torch.equal(mad.release(answers(), images(50)).argmax(dim=1), answers().argmin(dim=1))


def test_with_a_uniform_surrogate_so_does_the_other(answers: Draw) -> None:
    probs = answers(500).double()
    uniform = torch.full_like(probs, 0.1)
    assert torch.equal(most_deviating_class(probs, uniform), probs.argmin(dim=1))


def test_vanishing_gradients_do_no_harm(context: Make, answers: Draw) -> None:
    probs = answers(10).double()
    assert torch.equal(most_deviating_class(probs, probs), torch.zeros(10, dtype=torch.long))
    one_hot = torch.eye(10, dtype=torch.float64)
    assert most_deviating_class(probs, one_hot).shape == (10,)
    mad = MAD()
    mad.prepare(context())
    assert torch.isfinite(mad.release(one_hot.float(), torch.zeros(10, 1, 6, 6))).all()


def test_the_surrogate_depends_on_the_seed_and_stays_as_it_is(context: Make, images: Draw) -> None:
    first, second = MAD(), MAD()
    first.prepare(context(seed=0))
    second.prepare(context(seed=1))
    assert not first.surrogate.training
    assert not any(parameter.requires_grad for parameter in first.surrogate.parameters())
    assert not torch.equal(first.surrogate(images(3)), second.surrogate(images(3)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("defense", [MAD(), MADArgmax()])
def test_at_equal_seeds_the_surrogate_is_not_the_target_before_training(defense: MAD, seed: int, context: Make) -> None:
    size = {"num_classes": 10, "image_shape": (1, 8, 8)}
    before = build_network("lenet5", seed=seed, **size)
    defense.prepare(replace(context(seed=seed), new_surrogate=lambda own: build_clone("lenet5", seed=own, **size)))
    for mine, its in zip(defense.surrogate.parameters(), before.parameters(), strict=True):
        assert mine.shape == its.shape and not torch.equal(mine, its)
