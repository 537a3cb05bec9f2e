"""MeCo: its random functions image by image, its training step by brute force, and its random state."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msbench.benchmark.checks import stored
from msbench.defenses.base import DefenseContext
from msbench.defenses.meco import MeCo, mean_contrast, perturbation, stein_direction
from msbench.targets.datasets.base import TensorImages
from msbench.targets.training import Recipe
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]
SHORT = Recipe(epochs=2, batch=32, lr=1e-3, weight_decay=0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
def test_every_image_is_perturbed_by_a_network_of_its_own(shape: tuple[int, int, int], images: Draw) -> None:
    asked, generator = images(5, shape), rng()
    together = perturbation(asked, rng())
    features = list(asked.split(1))
    for _ in range(2):
        for out, into, kernel in ((2, shape[0], 1), (2, 2, 3), (shape[0], 2, 1)):
            weights = torch.randn(5, out, into, kernel, kernel, generator=generator)
            padding = 2 if kernel == 3 else 0
            features = [
                F.conv2d(each, own / math.sqrt(into * kernel**2), padding=padding, dilation=2)
                for each, own in zip(features, weights, strict=True)
            ]
            # Batch normalization of one image, in training, is what the official code has.
            features = [F.batch_norm(each, None, None, training=True) for each in features]
            if (out, into) != (shape[0], 2) or kernel == 3:
                features = [each.relu() for each in features]
    torch.testing.assert_close(together, torch.cat(features), rtol=0, atol=1e-4)


def test_perturbations_have_mean_zero_and_variance_one(images: Draw) -> None:
    noise = perturbation(images(50, (3, 12, 12)), rng())
    torch.testing.assert_close(noise.mean(dim=(2, 3)), torch.zeros(50, 3), rtol=0, atol=1e-5)
    variances = noise.var(dim=(2, 3), correction=0)  # below one by what keeps the normalization from dividing by zero
    assert 0.8 < float(variances.min()) <= float(variances.max()) < 1 + 1e-4
    assert float(variances.mean()) > 0.99


def test_the_same_image_is_never_perturbed_alike(images: Draw) -> None:
    twice = images(1).expand(2, -1, -1, -1)
    generator = rng()
    first, second = perturbation(twice, generator)
    [third] = perturbation(twice[:1], generator)
    for one, other in ((first, second), (first, third), (second, third)):
        assert float((one - other).abs().mean()) > 0.1


def test_the_stein_direction_is_that_of_the_double_sum() -> None:
    points = torch.tensor([0.0, 0.05, 0.1, 1.0, 2.0, 2.03, 3.0], dtype=torch.float64)[:, None]
    uphill = torch.randn(7, 1, generator=rng(), dtype=torch.float64)
    gaps = sorted(abs(float(a - b)) for a in points for b in points)
    bandwidth = 0.05 * gaps[len(gaps) // 2] ** 2 / math.log(8)
    direction = []
    for here in points:
        total = 0.0
        for there, gradient in zip(points, uphill, strict=True):
            kernel = math.exp(-(float(here - there) ** 2) / bandwidth)
            total += kernel * float(gradient) + 2 * float(here - there) / bandwidth * kernel
        direction.append([total / 7])
    assert abs(direction[0][0] - float(uphill[0]) / 7) > 0.1  # neighbors do act here
    torch.testing.assert_close(stein_direction(points, uphill), torch.tensor(direction, dtype=torch.float64))


def test_coinciding_particles_share_their_gradients(images: Draw) -> None:
    same, uphill = images(1).expand(6, -1, -1, -1), torch.randn(6, 1, 6, 6, generator=rng())
    shared = uphill.mean(dim=0, keepdim=True).expand_as(uphill)
    torch.testing.assert_close(stein_direction(same, uphill), shared, rtol=0, atol=1e-3)


def test_training_images_move_uphill_at_a_price(context: Make, images: Draw) -> None:
    network, labels = context().target(), torch.arange(20) % 10
    losses, distances = [], []
    for params in ({"steps": 0}, {"steps": 5, "gamma": 0.0}, {"steps": 5, "gamma": 20.0}):
        moved = MeCo(step_size=0.4, **params).move(network, images(20), labels)
        losses.append(float(F.cross_entropy(network(moved), labels)))
        distances.append(float((moved - images(20)).square().sum()))
    assert losses[0] < losses[2] < losses[1]
    assert distances[0] == 0 < distances[2] < distances[1]
    default = MeCo().move(network, images(20), labels)
    assert float((default - images(20)).abs().max()) < 0.5 / 255


def test_the_loss_is_clean_plus_perturbed_plus_disagreement(context: Make, images: Draw) -> None:
    network, labels = context().target(), torch.arange(20) % 10
    contrast = torch.tensor([[[0.25]]])
    clean = F.cross_entropy(network(images(20)), labels)
    unperturbed = MeCo(scale=0, steps=0).loss(network, images(20), labels, contrast, rng())
    torch.testing.assert_close(unperturbed, 2 * clean)
    generator = rng(3)
    amplitude = 0.4 * (0.5 + 0.5 * float(torch.rand((), generator=generator)))
    perturbed = network(images(20) + amplitude / 4 * perturbation(4 * images(20), generator))
    expected = clean + F.cross_entropy(perturbed, labels) + 0.7 * (perturbed - network(images(20))).abs().mean()
    loss = MeCo(scale=0.4, steps=0, agreement=0.7).loss(network, images(20), labels, contrast, rng(3))
    torch.testing.assert_close(loss, expected)


def test_training_is_the_same_on_pixels_as_on_standardized_images(context: Make, images: Draw) -> None:
    """As the official code trains: moves and their price are in the same units as the perturbation."""
    asked, labels = images(20, (3, 6, 6)), torch.arange(20) % 10
    inner = context(image_shape=(3, 6, 6)).target()
    contrast, ones = torch.tensor([0.2023, 0.1994, 0.2010])[:, None, None], torch.ones(3, 1, 1)
    outer = nn.Sequential(Divided(contrast), inner)
    defense = MeCo(step_size=0.5, gamma=3.0, agreement=0.7)
    loss = defense.loss(outer, asked, labels, contrast, rng(3))
    expected = defense.loss(inner, asked / contrast, labels, ones, rng(3))
    torch.testing.assert_close(loss, expected)
    assert abs(float(loss - defense.loss(outer, asked, labels, ones, rng(3)))) > 1e-3


class Divided(nn.Module):
    """Images divided by a number for each channel."""

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def forward(self, images: Tensor) -> Tensor:
        return images / self.by


def test_contrast_is_the_mean_spread_within_an_image(images: Draw) -> None:
    pixels = (255 * images(1100, (3, 4, 5)) * torch.rand(1100, 1, 1, 1, generator=rng())).byte()
    each = torch.tensor([[float((channel / 255).std(correction=0)) for channel in image] for image in pixels])
    found = mean_contrast(TensorImages(pixels, torch.zeros(1100)))
    torch.testing.assert_close(found, each.mean(dim=0).view(3, 1, 1))
    black = TensorImages(torch.zeros(4, 1, 6, 6).byte(), torch.zeros(4))
    assert float(mean_contrast(black)) > 0  # it is divided by


def prepared(context: DefenseContext) -> tuple[MeCo, nn.Module]:
    defense = MeCo()
    defense.prepare(replace(context, recipe=SHORT))
    return defense, defense.deploy(context.target())


@torch.no_grad()
def test_queries_are_perturbed_by_the_scale_and_go_on_from_a_saved_state(context: Make, images: Draw) -> None:
    defense, network = prepared(context())
    contrast = mean_contrast(context().data())
    added = 0.27 * contrast * perturbation(images(9) / contrast, rng())
    expected = network.network(images(9) + added)  # type: ignore[operator]
    torch.testing.assert_close(network(images(9)), expected)
    state = stored(defense.state_dict())
    assert torch.equal(defense.network.state_dict()["contrast"], contrast)
    following = network(images(9))
    assert not torch.allclose(following, expected)
    later, fresh = prepared(context())
    later.load_state_dict(state)
    assert torch.equal(fresh(images(9)), following)


def test_training_is_reproducible_from_the_seed(
    context: Make, images: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for home, seed in (("one", 0), ("two", 0), ("two", 0), ("two", 1)):  # trained twice, then kept
        monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / home))
        answers.append(prepared(context(seed=seed))[1](images(9)))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    assert not torch.allclose(answers[0], answers[3])
