"""What the harness hands to an attack."""

from collections.abc import Callable

import torch
from msbench.attacks.base import AttackContext
from torch import nn


def test_streams_depend_on_the_seed_and_the_name(context: Callable[..., AttackContext]) -> None:
    streams = [context(seed=seed).stream(name) for seed in range(20) for name in ("student 0", "student 1", "noise")]
    assert len(set(streams)) == 60
    assert all(0 <= stream < 2**63 for stream in streams)
    assert context(seed=3).stream("noise") == context(seed=3).stream("noise")


def test_generators_of_one_name_draw_the_same(context: Callable[..., AttackContext]) -> None:
    first, again, other = (
        torch.rand(4, generator=context().generator(name)).tolist() for name in ("latents", "latents", "directions")
    )
    assert first == again != other


def test_clones_depend_on_the_name_and_leave_the_global_state(
    context: Callable[..., AttackContext], same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    before = torch.get_rng_state()
    first, again, other = (context().new_clone(name) for name in ("student 0", "student 0", "student 1"))
    assert same(first, again)
    assert not same(first, other)
    assert torch.equal(before, torch.get_rng_state())
