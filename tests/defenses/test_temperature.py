"""Temperature."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.defenses.temperature import Temperature
from msbench.errors import BadParameter
from torch import Tensor

NO_IMAGES = torch.zeros(0)
seeds = st.integers(0, 2**32)


def release(temperature: float, probs: Tensor) -> Tensor:
    return Temperature(temperature=temperature).release(probs, NO_IMAGES)


def test_by_hand() -> None:
    released = release(2.0, torch.tensor([[0.64, 0.36, 0.0]]))
    torch.testing.assert_close(released, torch.tensor([[0.8, 0.6, 0.0]]) / 1.4)


@settings(deadline=None, max_examples=25)
@given(seed=seeds, temperature=st.floats(0.1, 100), num_classes=st.sampled_from([2, 10, 1000]))
def test_is_softmax_of_scaled_logits(seed: int, temperature: float, num_classes: int) -> None:
    logits = 5 * torch.randn(10, num_classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    released = release(temperature, logits.softmax(dim=1))
    torch.testing.assert_close(released, (logits / temperature).softmax(dim=1), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=seeds, temperature=st.sampled_from([0.5, 2.0, 4.0, 8.0]))
def test_can_be_inverted(answers: Callable[..., Tensor], seed: int, temperature: float) -> None:
    """Why it is a control and not a defense."""
    probs = answers(20, 10, seed)
    recovered = release(1 / temperature, release(temperature, probs))
    torch.testing.assert_close(recovered, probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 100])
def test_edges_stay_on_the_simplex(temperature: float) -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [1 - 1e-7, 1e-7, 1e-38]])
    released = release(temperature, probs)
    torch.testing.assert_close(released.sum(dim=1), torch.ones(4))
    assert torch.equal(released[:2], probs[:2])


@settings(deadline=None, max_examples=25)
@given(seed=seeds, temperature=st.sampled_from([0.01, 0.5, 2.0, 8.0, 100.0]), num_classes=st.sampled_from([2, 10, 43]))
def test_a_lead_becomes_a_tie_at_worst(
    answers: Callable[..., Tensor], seed: int, temperature: float, num_classes: int
) -> None:
    probs = answers(500, num_classes, seed).double()
    values, places = probs.topk(2, dim=1)
    leads = torch.logspace(-9, -4, 500, dtype=torch.float64)[:, None] * torch.tensor([0.5, -0.5])
    near = probs.scatter(1, places, values.mean(dim=1, keepdim=True) + leads).float()
    lead = near.gather(1, places).diff(dim=1).neg().squeeze(1)
    everything = release(temperature, near)
    released = everything.gather(1, places)
    assert torch.equal(released[:, 0], everything.amax(dim=1))
    clear = lead > 2e-8 * max(temperature, 1)
    assert clear.sum() > 100
    assert (released[:, 0] > released[:, 1])[clear].all()


@pytest.mark.parametrize("temperature", [0, -1, 1e-3, 1e3])
def test_temperatures_that_no_float_survives_are_refused(temperature: float) -> None:
    with pytest.raises(BadParameter, match="out of range"):
        Temperature(temperature=temperature)
