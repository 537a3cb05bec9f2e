"""Chains, and traits that depend on hyperparameters."""

from collections.abc import Callable

import torch
from msbench.defenses.base import Chain, DefenseContext, load_defense
from msbench.defenses.noise import Noise
from torch import Tensor


def test_links_apply_in_order() -> None:
    chain = load_defense("topk:k=2+rounding:decimals=1")
    released = chain.release(torch.tensor([[0.51, 0.29, 0.2]]), torch.zeros(1, 1, 6, 6))
    torch.testing.assert_close(released, torch.tensor([[0.6, 0.4, 0.0]]), rtol=0, atol=1e-6)
    assert str(chain) == "topk:k=2+rounding:decimals=1"


def test_a_chain_declares_what_its_links_do() -> None:
    assert load_defense("topk+temperature").traits.argmax_preserving
    assert not load_defense("topk+rounding").traits.argmax_preserving
    assert load_defense("topk+noise").traits.stochastic
    assert not load_defense("topk+noise:per_input=true").traits.stochastic
    assert load_defense("noise+label_only").traits.labels_only
    assert load_defense("mad+topk").traits.needs == ("surrogate",)


def test_two_noises_in_a_chain_are_independent(context: Callable[..., DefenseContext]) -> None:
    chain = load_defense("noise+noise")
    assert isinstance(chain, Chain)
    chain.prepare(context())
    probs, images = torch.zeros(100, 10), torch.zeros(100, 1, 6, 6)
    first, second = (link.sample(probs, images) for link in chain.links if isinstance(link, Noise))
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.15


def test_a_chain_continues_from_its_state(
    context: Callable[..., DefenseContext], answers: Callable[..., Tensor], images: Callable[..., Tensor]
) -> None:
    first, second = load_defense("noise+topk"), load_defense("noise+topk")
    first.prepare(context())
    second.prepare(context())
    first.release(answers(), images(50))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.release(answers(), images(50)), second.release(answers(), images(50)))
