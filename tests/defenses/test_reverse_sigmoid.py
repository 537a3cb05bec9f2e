"""Reverse sigmoid."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.defenses.reverse_sigmoid import ReverseSigmoid
from torch import Tensor

NO_IMAGES = torch.zeros(0)


def release(probs: Tensor, beta: float = 0.2, gamma: float = 0.2, keep_argmax: bool = False) -> Tensor:
    return ReverseSigmoid(beta=beta, gamma=gamma, keep_argmax=keep_argmax).release(probs, NO_IMAGES)


def r(p: float, beta: float, gamma: float) -> float:
    return beta * (1 / (1 + math.pow((1 - p) / p, gamma)) - 0.5)


def test_by_hand() -> None:
    clean = [0.7, 0.2, 0.1]
    perturbed = [p - r(p, 0.5, 0.3) for p in clean]
    expected = [p / math.fsum(perturbed) for p in perturbed]
    torch.testing.assert_close(release(torch.tensor([clean]), 0.5, 0.3), torch.tensor([expected]))


@pytest.mark.parametrize("p", [0.51, 0.6, 0.9, 0.99, 0.9999, 1.0])
def test_confident_answers_are_perturbed(p: float) -> None:
    """Bounding the odds p / (1 - p) by one instead of p, as some published code does, leaves these alone.

    With two classes the sum stays one, so that the change of the answer is r itself.
    """
    change = p - float(release(torch.tensor([[p, 1 - p]]), beta=0.4)[0, 0])
    assert change == pytest.approx(r(min(p, 1 - 1e-7), 0.4, 0.2), abs=1e-6)
    assert change > 5e-4


def test_stays_on_the_simplex_at_its_strongest() -> None:
    probs = torch.cat([torch.eye(10), torch.full((1, 10), 0.1)])
    released = release(probs, beta=5.0, gamma=10.0)
    assert (released >= 0).all()
    torch.testing.assert_close(released.sum(dim=1), torch.ones(11))


def test_zero_beta_changes_nothing(answers: Callable[..., Tensor]) -> None:
    torch.testing.assert_close(release(answers(), beta=0.0), answers(), rtol=0, atol=1e-6)


def test_large_beta_changes_the_top_class_and_more_so_with_many_classes(
    answers: Callable[..., Tensor],
) -> None:
    def changed(num_classes: int, beta: float) -> float:
        probs = answers(1000, num_classes, scale=4.0)
        return float((release(probs, beta).argmax(dim=1) != probs.argmax(dim=1)).float().mean())

    assert changed(10, 0.3) == 0
    assert 0.01 < changed(10, 0.9) < changed(100, 0.9)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    num_classes=st.sampled_from([2, 3, 10, 100, 1000]),
    beta=st.floats(0.01, 3),
    gamma=st.floats(0.01, 2),
)
def test_the_variant_keeps_the_top_class_and_moves_as_far_as_it_may(
    answers: Callable[..., Tensor], seed: int, num_classes: int, beta: float, gamma: float
) -> None:
    clean = answers(30, num_classes, seed)
    best, second = clean.topk(2, dim=1).values.unbind(dim=1)
    clean = clean[best - second > 1e-3]
    free, kept = release(clean, beta, gamma), release(clean, beta, gamma, keep_argmax=True)
    top = clean.argmax(dim=1)
    assert torch.equal(kept.argmax(dim=1), top)
    lead = kept.gather(1, top[:, None]) - kept
    before = clean.gather(1, top[:, None]) - clean
    assert bool((lead >= 0.01 * before - 1e-6).all())
    # Either nothing was held back, or some lead is at its limit.
    held_back = (kept - free).abs().amax(dim=1) > 1e-6
    slack = (lead - 0.01 * before).scatter(1, top[:, None], torch.inf).amin(dim=1)
    assert bool((slack[held_back] < 1e-5).all())


def test_the_variant_says_so() -> None:
    assert ReverseSigmoid(keep_argmax=True).traits.argmax_preserving
    assert not ReverseSigmoid().traits.argmax_preserving
