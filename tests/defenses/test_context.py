"""What defenses take from their context: seeds of their own, and images that they declare."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from msbench.components import names
from msbench.defenses.base import DefenseContext, load_defense
from msbench.targets.datasets.base import Images
from msbench.targets.training import Recipe
from torch import nn

VARIANTS = [
    "grad_redirection:surrogate=pool,epochs=1",
    "emma:queries=pool,early=0,epochs=1",
    "adaptive_misinformation:served=target",
    "adaptive_misinformation:unrelated=svhn",
    "edm:unrelated=svhn",
    "ini:unrelated=svhn",
]


@pytest.mark.parametrize("spec", names("defense") + VARIANTS)
def test_takes_what_it_declares(spec: str, context: Callable[..., DefenseContext]) -> None:
    """No network from the bare seed, which at equal seeds is the target's; the attacker's images where it says so."""
    seeds: list[int] = []
    images: list[str] = []

    def new_surrogate(seed: int) -> nn.Module:
        seeds.append(seed)
        return given.new_surrogate(seed)

    def auxiliary(name: str) -> Images:
        images.append(name)
        return given.auxiliary(name)

    given = context(image_shape=(1, 8, 8), seed=5)
    short = Recipe(epochs=1, batch=128, lr=1e-3, weight_decay=0)
    defense = load_defense(spec)
    defense.prepare(replace(given, new_surrogate=new_surrogate, auxiliary=auxiliary, recipe=short))
    assert 5 not in seeds
    assert ("queries" in defense.traits.needs) == bool(images)  # whichever they are, attackers may ask about their like
    assert ("auxiliary" in defense.traits.needs) == bool(images)
