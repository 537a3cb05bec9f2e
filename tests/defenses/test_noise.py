"""Noise, fresh and per input."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from msbench.defenses.base import DefenseContext
from msbench.defenses.noise import Noise, image_digest, log_gamma_variate
from msbench.defenses.simplex import project_to_simplex
from msbench.errors import BadParameter
from scipy import stats
from torch import Tensor

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]
Distribution = Literal["gaussian", "laplace"]


@pytest.fixture(params=["gaussian", "laplace"])
def distribution(request: pytest.FixtureRequest) -> Distribution:
    name: Distribution = request.param
    return name


@pytest.mark.parametrize("per_input", [False, True])
def test_is_distributed_as_it_says(distribution: Distribution, per_input: bool, context: Make, images: Draw) -> None:
    noise = Noise(distribution=distribution, scale=0.3, per_input=per_input)
    noise.prepare(context())
    drawn = noise.sample(torch.zeros(2000, 10), images(2000))
    reference = stats.norm(scale=0.3) if distribution == "gaussian" else stats.laplace(scale=0.3)
    assert stats.kstest(drawn.flatten().numpy(), reference.cdf).pvalue > 1e-3
    between_classes = torch.corrcoef(drawn.T) - torch.eye(10, dtype=drawn.dtype)
    assert float(between_classes.abs().max()) < 0.1


def test_releases_the_projection_of_the_noisy_answer(context: Make, answers: Draw, images: Draw) -> None:
    noise, same = Noise(scale=0.2), Noise(scale=0.2)
    noise.prepare(context())
    same.prepare(context())
    probs, asked = answers(50), images(50)
    expected = project_to_simplex(probs.double() + same.sample(probs, asked)).float()
    assert torch.equal(noise.release(probs, asked), expected)


def test_averaging_removes_fresh_noise(context: Make, images: Draw) -> None:
    noise = Noise(scale=0.01)
    noise.prepare(context())
    inside = torch.full((5, 10), 0.1)
    mean = torch.stack([noise.release(inside, images(5)) for _ in range(400)]).mean(dim=0)
    assert float((mean - inside).abs().max()) < 5 * 0.01 / 400**0.5


def test_seeds_give_different_noise(distribution: Distribution, context: Make, answers: Draw, images: Draw) -> None:
    for per_input in (False, True):
        released = []
        for seed in (0, 1):
            noise = Noise(distribution=distribution, per_input=per_input)
            noise.prepare(context(seed=seed))
            released.append(noise.release(answers(50), images(50)))
        assert not torch.equal(*released)


def test_traits_follow_the_kind() -> None:
    assert Noise.traits.stochastic
    assert Noise().traits.stochastic
    assert not Noise(per_input=True).traits.stochastic


@pytest.fixture
def fixed(context: Make) -> Noise:
    noise = Noise(per_input=True)
    noise.prepare(context())
    return noise


def test_per_input_noise_depends_on_the_image_alone(fixed: Noise, images: Draw) -> None:
    probs, asked = torch.zeros(64, 10), images(64)
    together = fixed.sample(probs, asked)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fixed.sample(probs, asked[order]), together[order])
    assert torch.equal(fixed.sample(probs[:1], asked[:1]), together[:1])
    assert torch.equal(fixed.sample(probs[:1], asked[:1].expand(3, -1, -1, -1)), together[:1].expand(3, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_per_input_noise_does_not_depend_on_the_dtype(fixed: Noise, dtype: torch.dtype) -> None:
    gray = torch.arange(256).repeat(36).view(-1, 1, 6, 6)[:256]
    probs = torch.zeros(len(gray), 10)
    assert torch.equal(fixed.sample(probs, gray.float() / 255), fixed.sample(probs, (gray.double() / 255).to(dtype)))


def test_one_gray_level_gives_another_draw_and_less_does_not(fixed: Noise) -> None:
    base = torch.full((1, 1, 6, 6), 100 / 255)
    pixel = torch.zeros(36, 1, 6, 6)
    pixel.view(36, 36).fill_diagonal_(1)
    probs = torch.zeros(36, 10)
    unchanged = fixed.sample(probs[:1], base)
    assert torch.equal(fixed.sample(probs, base + pixel * 0.4 / 255), unchanged.expand(36, -1))
    assert len(set(map(tuple, fixed.sample(probs, base + pixel / 255).tolist()))) == 36
    assert not (fixed.sample(probs, base + pixel / 255) == unchanged).any()


def test_digests_do_not_collide(fixed: Noise) -> None:
    binary = torch.stack([(torch.arange(4096) >> bit) & 1 for bit in range(12)], dim=1).float()
    few_pixels = torch.zeros(4096, 36)
    few_pixels[:, :12] = binary
    assert len(set(image_digest(few_pixels.view(-1, 1, 6, 6), fixed.key).tolist())) == 4096


def test_state_continues_the_noise(context: Make, answers: Draw, images: Draw) -> None:
    first, second = Noise(), Noise()
    for noise in (first, second):
        noise.prepare(context())
    probs, asked = answers(5), images(5)
    first.release(probs, asked)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.release(probs, asked), second.release(probs, asked))


@pytest.mark.parametrize("shape", [1.0, 1.001, 2.5, 100.0])
def test_gamma_variates_are_distributed_as_such(shape: float) -> None:
    uniform = torch.rand(5000, 12, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = log_gamma_variate(torch.full((5000, 1), shape, dtype=torch.float64), uniform).exp()
    assert stats.kstest(drawn.flatten().numpy(), stats.gamma(shape).cdf).pvalue > 1e-3


@pytest.mark.parametrize("per_input", [False, True])
@pytest.mark.parametrize("scale", [0.05, 0.3, 0.9])
def test_dirichlet_answers_have_beta_margins(scale: float, per_input: bool, context: Make, images: Draw) -> None:
    noise = Noise(distribution="dirichlet", scale=scale, per_input=per_input)
    noise.prepare(context(4))
    probs = torch.tensor([0.6, 0.3, 0.1, 0.0]).expand(4000, -1)
    released = noise.noisy(probs.double(), images(4000))
    torch.testing.assert_close(released.sum(dim=1), torch.ones(4000, dtype=torch.float64))
    assert not released[:, 3].any()
    concentration = scale**-2 - 1
    for p, sample in zip((0.6, 0.3, 0.1), released.T, strict=False):
        assert stats.kstest(sample.numpy(), stats.beta(concentration * p, concentration * (1 - p)).cdf).pvalue > 1e-3
        assert float(sample.std()) == pytest.approx(scale * (p * (1 - p)) ** 0.5, rel=0.05)


def test_dirichlet_survives_tiny_probabilities(context: Make, images: Draw) -> None:
    noise = Noise(distribution="dirichlet", scale=0.99)
    noise.prepare(context(3))
    probs = torch.tensor([[1e-30, 1e-20, 1e-25], [1.0, 0.0, 0.0]])
    released = noise.noisy((probs / probs.sum(dim=1, keepdim=True)).double(), images(2))
    assert torch.isfinite(released).all()
    assert released[1].tolist() == [1, 0, 0]


def test_noise_on_logits_is_added_to_them(context: Make, answers: Draw, images: Draw) -> None:
    noise, same = Noise(on="logits", scale=0.5), Noise(scale=0.5)
    noise.prepare(context())
    same.prepare(context())
    probs, asked = answers(50, scale=1.0), images(50)
    added = same.sample(probs, asked)
    difference = noise.release(probs, asked).double().log() - probs.double().log() - added
    torch.testing.assert_close(difference, difference[:, :1].expand(-1, 10), rtol=0, atol=1e-4)  # softmax's constant
    one_hot = torch.eye(10)
    assert torch.isfinite(noise.release(one_hot, images(10))).all()


@pytest.mark.parametrize("settings", [{}, {"distribution": "laplace"}, {"on": "logits"}, {"distribution": "dirichlet"}])
def test_noise_keeps_its_budget(settings: dict[str, str], context: Make, answers: Draw, images: Draw) -> None:
    noise = Noise.from_params(settings | {"scale": 0.5, "epsilon": 0.1})
    noise.prepare(context())
    probs = answers(200, scale=1.0)
    distance = (noise.release(probs, images(200)).double() - probs.double()).abs().sum(dim=1)
    assert float(distance.max()) <= 0.1 + 1e-6
    assert float(distance.median()) == pytest.approx(0.1, abs=1e-6)  # so much noise leaves few answers nearer


def test_what_does_not_fit_dirichlet_is_refused() -> None:
    with pytest.raises(BadParameter, match="must be < 1"):
        Noise(distribution="dirichlet", scale=1.0)
    with pytest.raises(BadParameter, match="drawn, not added"):
        Noise(distribution="dirichlet", on="logits")


def test_noise_on_logits_starts_from_a_floor(context: Make) -> None:
    noise = Noise(on="logits", scale=1e-6)
    noise.prepare(context())
    released = noise.release(torch.eye(10), torch.zeros(10, 1, 6, 6))
    torch.testing.assert_close(released[0, 1:], torch.full((9,), 1e-7), rtol=1e-3, atol=0)
