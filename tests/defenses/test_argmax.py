"""What defenses that keep the top class make of one that hardly leads."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from msbench.components import names
from msbench.defenses.base import DefenseContext, load_defense
from msbench.targets.training import Recipe
from torch import Tensor

VARIANTS = [
    "temperature:temperature=100",
    "topk:k=7",
    "stingy_teacher:share=0.5",
    "reverse_sigmoid:beta=1.28,keep_argmax=true",
    "mad_argmax:epsilon=2",
]
KEEPING = [name for name in names("defense") if load_defense(name).traits.argmax_preserving] + VARIANTS


@pytest.mark.parametrize("num_classes", [10, 43])
@pytest.mark.parametrize("spec", KEEPING)
def test_the_top_class_ties_at_worst_and_only_where_its_lead_was_tiny(
    spec: str, num_classes: int, context: Callable[..., DefenseContext], answers: Callable[..., Tensor]
) -> None:
    defense = load_defense(spec)
    defense.prepare(replace(context(num_classes), recipe=Recipe(epochs=1, batch=128, lr=1e-3, weight_decay=0)))
    probs = answers(150, num_classes).double()
    values, places = probs.topk(2, dim=1)
    leads = torch.logspace(-9, -4, 150, dtype=torch.float64)[:, None] * torch.tensor([0.5, -0.5])
    near = probs.scatter(1, places, values.mean(dim=1, keepdim=True) + leads).float()
    lead = near.gather(1, places).diff(dim=1).neg().squeeze(1)
    released = defense.release(near, torch.zeros(150, 1, 6, 6))
    apart, clear = lead > 0, lead > 2e-6  # at no lead, the top class is not unique to begin with
    assert apart.sum() > 100 > clear.sum() > 30
    assert torch.equal(released.gather(1, places[:, :1])[apart, 0], released.amax(dim=1)[apart])
    assert torch.equal(released.argmax(dim=1)[clear], places[clear, 0])
