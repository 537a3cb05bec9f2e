"""Forward differences against gradients that are known."""

import math

import pytest
import torch
from msbench.attacks.gradients import forward_difference
from msbench.benchmark.numerics import numerics
from torch import Tensor
from torch.nn import functional as F


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimate(slope: Tensor, count: int, *, directions: int, seed: int = 0) -> Tensor:
    """The estimated gradient of the linear objective with this slope (C, H, W), at so many points."""
    points = torch.randn(count, *slope.shape, generator=seeded(1), dtype=slope.dtype)
    return forward_difference(
        lambda everywhere: (everywhere * slope).flatten(1).sum(dim=1),
        points,
        directions=directions,
        step=1e-3,
        generator=seeded(seed),
    )


def test_a_linear_objective_has_its_slope_as_the_limit() -> None:
    slope = torch.randn(1, 4, 4, generator=seeded(2), dtype=torch.float64)
    errors = [
        float((estimate(slope, 8, directions=m) - slope).norm() / (slope.norm() * math.sqrt(8)))
        for m in (1, 100, 10_000)
    ]
    # The relative error falls as sqrt(dim / m): about 3.9, 0.39 and 0.039.
    assert errors[0] > 2
    assert errors[1] < 0.6
    assert errors[2] < 0.06


def test_it_is_unbiased_at_one_direction() -> None:
    slope = torch.randn(1, 2, 2, generator=seeded(2), dtype=torch.float64)
    mean = estimate(slope, 200_000, directions=1).mean(dim=0)
    torch.testing.assert_close(mean, slope, atol=0.03, rtol=0)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_mean_cosine_with_the_gradient_at_one_direction(side: int) -> None:
    slope = torch.randn(1, side, side, generator=seeded(3), dtype=torch.float64)
    found = estimate(slope, 20_000, directions=1)
    cosine = F.cosine_similarity(found.flatten(1), slope.flatten().unsqueeze(0))
    expected = math.sqrt(2 / (math.pi * side * side))
    # sqrt(2 / (pi * dim)) is itself the limit of many dimensions, 1.6 % off at 16.
    assert float(cosine.mean()) == pytest.approx(expected, rel=0.03)


def test_a_curved_objective_has_another_gradient_at_every_point() -> None:
    points = torch.randn(4, 1, 3, 3, generator=seeded(4), dtype=torch.float64)
    found = forward_difference(
        lambda everywhere: everywhere.square().flatten(1).sum(dim=1),
        points,
        directions=20_000,
        step=1e-4,
        generator=seeded(),
    )
    cosine = F.cosine_similarity(found.flatten(1), (2 * points).flatten(1))
    assert float(cosine.min()) > 0.995
    torch.testing.assert_close(found.flatten(1).norm(dim=1), (2 * points).flatten(1).norm(dim=1), rtol=0.1, atol=0)


@pytest.mark.parametrize("directions", [1, 5])
def test_every_point_is_evaluated_in_one_call_without_gradients(directions: int) -> None:
    calls: list[Tensor] = []
    points = torch.randn(3, 2, 4, 4, generator=seeded(5), requires_grad=True)

    def objective(everywhere: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        calls.append(everywhere)
        return everywhere.flatten(1).sum(dim=1)

    found = forward_difference(objective, points, directions=directions, step=0.01, generator=seeded())
    assert found.shape == points.shape
    [everywhere] = calls
    assert everywhere.shape == ((directions + 1) * 3, 2, 4, 4)
    assert torch.equal(everywhere[:3], points)
    moved = everywhere[3:].view(directions, 3, -1) - points.detach().flatten(1)
    torch.testing.assert_close(moved.norm(dim=2), torch.full((directions, 3), 0.01), atol=1e-5, rtol=0)


def test_the_objective_is_asked_in_full_float32_whatever_is_allowed_around() -> None:
    kinds: list[tuple[bool, bool, str]] = []

    def objective(everywhere: Tensor) -> Tensor:
        kinds.append(precision())
        return everywhere.flatten(1).sum(dim=1)

    with numerics("bf16", torch.device("cpu")):
        around = precision()
        forward_difference(objective, torch.zeros(1, 1, 2, 2), directions=1, step=0.01, generator=seeded())
        assert precision() == around == (True, True, "high")
    assert kinds == [(False, False, "highest")]


def precision() -> tuple[bool, bool, str]:
    """Whether there is autocast and TF32 in convolutions, and how precise matrix products are."""
    return (
        torch.is_autocast_enabled("cpu"),
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


def test_directions_come_from_the_generator_alone() -> None:
    slope = torch.ones(1, 2, 2)
    before = torch.get_rng_state()
    first, again, other = (estimate(slope, 2, directions=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
