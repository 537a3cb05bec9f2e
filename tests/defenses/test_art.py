"""Our filters against those of the Adversarial Robustness Toolbox, and where they differ on purpose."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from msbench.defenses.label_only import LabelOnly
from msbench.defenses.noise import Noise
from msbench.defenses.reverse_sigmoid import ReverseSigmoid
from msbench.defenses.rounding import Rounding
from numpy.typing import NDArray
from torch import Tensor

Draw = Callable[..., Tensor]
NO_IMAGES = torch.zeros(0)


@pytest.fixture(scope="module")
def art() -> Any:
    """The toolbox's output filters, which map (N, K) arrays to (N, K) arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("art.defences.postprocessor", exc_type=ImportError)


def apply(postprocessor: Any, probs: Tensor) -> Tensor:
    given: NDArray[np.float64] = probs.double().numpy()
    return torch.from_numpy(postprocessor(given.copy())).float()


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("decimals", [1, 2, 3, 5])
def test_rounding_agrees_once_normalized(art: Any, answers: Draw, num_classes: int, decimals: int) -> None:
    probs = answers(300, num_classes)
    theirs = apply(art.Rounded(decimals=decimals), probs)
    ours = Rounding(decimals=decimals).release(probs, NO_IMAGES)
    torch.testing.assert_close(ours, theirs / theirs.sum(dim=1, keepdim=True), rtol=0, atol=1e-6)


def test_their_rounding_does_not_normalize(art: Any, answers: Draw) -> None:
    sums = apply(art.Rounded(decimals=1), answers(300)).sum(dim=1)
    assert float(sums.min()) < 0.95
    assert float(sums.max()) > 1.05
    assert not apply(art.Rounded(decimals=1), torch.full((1, 100), 0.01)).any()


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize(("beta", "gamma"), [(0.2, 0.2), (1.0, 0.1), (1.28, 2.0), (2.0, 5.0)])
def test_reverse_sigmoid_agrees(art: Any, answers: Draw, num_classes: int, beta: float, gamma: float) -> None:
    probs = answers(300, num_classes).double().clamp(1e-6, 1 - 1e-6).float()
    theirs = apply(art.ReverseSigmoid(beta=beta, gamma=gamma), probs)
    ours = ReverseSigmoid(beta=beta, gamma=gamma).release(probs, NO_IMAGES)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_reverse_sigmoid_differs_at_the_edges_only_by_the_bounds(art: Any) -> None:
    """They keep probabilities 1e-9 away from zero and one before the logit, we 1e-7."""
    theirs = apply(art.ReverseSigmoid(beta=0.2, gamma=0.2), torch.eye(10))
    ours = ReverseSigmoid(beta=0.2, gamma=0.2).release(torch.eye(10), NO_IMAGES)
    assert 1e-3 < float((ours - theirs).abs().max()) < 0.05


def test_labels_agree_one_at_a_time(art: Any, answers: Draw) -> None:
    for row in torch.split(answers(20), 1):
        assert torch.equal(apply(art.ClassLabels(), row), LabelOnly().release(row, NO_IMAGES))


def test_their_labels_leak_between_the_rows_of_a_batch(art: Any) -> None:
    """Known in ART 1.20: every row gets the winners of all rows."""
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    assert apply(art.ClassLabels(), probs).tolist() == [[1, 1, 0], [1, 1, 0]]
    assert LabelOnly().release(probs, NO_IMAGES).tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.fixture
def noise(context: Callable[..., Any]) -> Noise:
    noise = Noise(scale=0.05)
    noise.prepare(context())
    return noise


def test_noise_is_drawn_alike(art: Any, noise: Noise, answers: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed with our draws, their filter differs by the projection alone: they clip and divide."""
    probs = answers(300)
    added = noise.sample(probs, NO_IMAGES)
    monkeypatch.setattr(np.random, "normal", lambda **_: added.numpy())
    clipped = (probs.double() + added).clamp_min(0)
    expected = (clipped / clipped.sum(dim=1, keepdim=True)).float()
    torch.testing.assert_close(apply(art.GaussianNoise(scale=0.05), probs), expected, rtol=0, atol=1e-6)


def test_noise_has_the_same_mean_and_spread(art: Any, noise: Noise) -> None:
    """On rows that do not sum to one they add noise and do nothing else."""
    base = torch.full((2000, 10), 5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = apply(art.GaussianNoise(scale=0.05), base) - base
    ours = noise.sample(base, NO_IMAGES)
    for sample in (theirs, ours):
        assert abs(float(sample.mean())) < 0.002
        assert float(sample.std()) == pytest.approx(0.05, rel=0.03)


def test_our_projection_is_closer_to_the_noisy_answer(
    art: Any, noise: Noise, answers: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    probs = answers(300)
    state = noise.state_dict()
    added = noise.sample(probs, NO_IMAGES)
    noise.load_state_dict(state)
    monkeypatch.setattr(np.random, "normal", lambda **_: added.numpy())
    noisy = probs.double() + added
    ours, theirs = noise.release(probs, NO_IMAGES), apply(art.GaussianNoise(scale=0.05), probs)
    assert bool(((ours - noisy).norm(dim=1) <= (theirs - noisy).norm(dim=1) + 1e-6).all())


def test_their_noise_can_leave_the_simplex(art: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing positive is left they divide zero by zero; the projection is always defined."""
    monkeypatch.setattr(np.random, "normal", lambda **_: -np.ones((1, 2)))
    with np.errstate(invalid="ignore"):
        assert bool(apply(art.GaussianNoise(scale=0.2), torch.tensor([[0.5, 0.5]])).isnan().all())
