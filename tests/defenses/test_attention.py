"""Networks with attention, whose fused kernels have but one derivative: every defense serves them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from msbench.components import names
from msbench.defenses.base import DefenseContext, load_defense
from msbench.defenses.deployment import Deployment
from msbench.defenses.grad_redirection import GradientRedirection
from msbench.targets.target import Target
from msbench.targets.training import Recipe
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]

SLOW_TO_TRAIN = {"emma": "emma:epochs=3,early=1"}
OTHERS = ["grad_redirection:direction=min_inner_product", "grad_redirection:direction=watermark"]


class Attentive(nn.Module):
    """Attends to the rows of an image, with one head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.into = nn.Linear(6, 24)
        self.out = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        query, key, value = self.into(images).chunk(3, dim=-1)
        logits: Tensor = self.out(F.scaled_dot_product_attention(query, key, value).mean(dim=(1, 2)))
        return logits


def network(seed: int) -> Attentive:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Attentive()


@pytest.fixture
def attentive(context: Make) -> DefenseContext:
    target = Target(network(1), mean=(0.0,), std=(1.0,), num_classes=4, image_shape=(1, 6, 6)).eval()
    recipe = Recipe(epochs=1, batch=128, lr=1e-3, weight_decay=0)
    return replace(context(4), new_surrogate=network, target=lambda: target.requires_grad_(False), recipe=recipe)


@pytest.mark.parametrize("spec", [SLOW_TO_TRAIN.get(name, name) for name in names("defense")] + OTHERS)
def test_every_defense_serves_them(spec: str, attentive: DefenseContext, images: Draw) -> None:
    defense = load_defense(spec)
    defense.prepare(attentive.granted(defense))
    target = attentive.target()
    assert isinstance(target, Target)
    released = Deployment(target, defense).serve(images(20))
    torch.testing.assert_close(released.sum(dim=1), torch.ones(20))


def test_worths_are_the_derivatives_that_fused_attention_does_not_have(
    attentive: DefenseContext, images: Draw, answers: Draw
) -> None:
    defense = GradientRedirection(surrogate="untrained")
    defense.prepare(attentive)
    asked, weights = images(3), dict(defense.network.named_parameters())
    with torch.no_grad(), pytest.raises(NotImplementedError, match="forward AD"):
        jvp(defense._logs(asked), (weights,), (defense.towards,))
    small = {name: weight + 1e-4 * defense.towards[name] for name, weight in weights.items()}
    with torch.no_grad():
        ahead, here = (defense._logs(asked)(at) for at in (small, weights))
        torch.testing.assert_close(defense.worth(asked, answers(3, 4)), (ahead - here) / 1e-4, rtol=0.02, atol=0.02)
