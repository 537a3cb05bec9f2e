"""Rounding."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.defenses.rounding import Rounding
from msbench.errors import BadParameter
from torch import Tensor

NO_IMAGES = torch.zeros(0)


def release(decimals: int, *rows: list[float]) -> Tensor:
    return Rounding(decimals=decimals).release(torch.tensor(rows), NO_IMAGES)


def test_by_hand() -> None:
    released = release(1, [0.56, 0.28, 0.16])
    torch.testing.assert_close(released, torch.tensor([[0.6, 0.3, 0.2]]) / 1.1)


def test_halves_go_to_even() -> None:
    torch.testing.assert_close(release(2, [0.125, 0.375, 0.5]), torch.tensor([[0.12, 0.38, 0.5]]))


def test_a_row_that_vanishes_becomes_uniform() -> None:
    assert torch.equal(release(1, [0.04] * 25), torch.full((1, 25), 0.04))
    assert torch.equal(release(0, [0.5, 0.5], [0.4, 0.6]), torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


def test_a_tie_can_hide_the_top_class() -> None:
    """Why it does not declare to preserve it."""
    assert release(1, [0.46, 0.54]).argmax() == 0
    assert not Rounding.traits.argmax_preserving


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), num_classes=st.sampled_from([2, 10, 300]), decimals=st.integers(0, 7))
def test_is_a_rounded_answer_over_its_sum(
    answers: Callable[..., Tensor], seed: int, num_classes: int, decimals: int
) -> None:
    probs = answers(20, num_classes, seed)
    released = Rounding(decimals=decimals).release(probs, NO_IMAGES).double()
    steps = (probs.double() * 10**decimals).round()
    total = steps.sum(dim=1, keepdim=True)
    expected = torch.where(total > 0, steps / total, 1 / num_classes)
    torch.testing.assert_close(released, expected, rtol=0, atol=1e-6)


def test_no_two_classes_swap_places(answers: Callable[..., Tensor]) -> None:
    probs = answers(200).sort(dim=1).values
    assert (Rounding(decimals=2).release(probs, NO_IMAGES).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("decimals", [-1, 8])
def test_decimals_are_bounded(decimals: int) -> None:
    with pytest.raises(BadParameter, match="out of range"):
        Rounding(decimals=decimals)
