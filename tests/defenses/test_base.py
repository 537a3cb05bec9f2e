"""Chains, and traits that depend on hyperparameters."""

from collections.abc import Callable

import pytest
import torch
from msbench.components import names
from msbench.defenses.base import Chain, DefenseContext, Traits, load_defense
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


@pytest.mark.parametrize("first", names("defense"))
def test_a_chain_of_any_two_merges_every_trait(first: str) -> None:
    """A chain preserves what both do, does what either does, and answers as its last link; it has no knob."""
    one = load_defense(first).traits
    for second in names("defense"):
        other = load_defense(second).traits
        assert load_defense(f"{first}+{second}").traits == Traits(
            argmax_preserving=one.argmax_preserving and other.argmax_preserving,
            stochastic=one.stochastic or other.stochastic,
            stateful=one.stateful or other.stateful,
            labels_only=other.labels_only,
            needs=tuple(sorted({*one.needs, *other.needs})),
            stage=next(s for s in ("training", "detection", "deterrent", "output") if s in (one.stage, other.stage)),
        )


@pytest.mark.parametrize(
    ("chain", "shared"),
    [
        ("prada+topk", False),
        ("prada+hoda", False),
        ("modelguard_s+topk", True),
        ("prada+modelguard_s", True),
        ("modelguard_s+prada", True),
        ("prada:action=none+modelguard_s", True),
    ],
)
def test_a_state_that_is_kept_for_all_stays_so_beside_one_for_each_account(chain: str, shared: bool) -> None:
    assert load_defense(chain).shares_state() == shared


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
