"""What every deterministic output defense releases, whatever the number of classes, is a probability vector."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msbench.components import names
from msbench.defenses.base import Defense, DefenseContext, load_defense
from torch import Tensor
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]

CLASSES = (2, 10, 43, 100, 1000)


def deterministic() -> list[str]:
    """The output defenses that draw nothing and keep nothing, with their defaults."""
    loaded = {name: load_defense(name).traits for name in names("defense")}
    return [name for name, own in loaded.items() if own.stage == "output" and not own.stochastic and not own.stateful]


@pytest.fixture(scope="module")
def prepared(context: Make) -> Callable[[str, int], Defense]:
    """Prepares a defense once for each number of classes."""
    made: dict[tuple[str, int], Defense] = {}

    def find(name: str, num_classes: int) -> Defense:
        if (name, num_classes) not in made:
            # So few classes leave topk less to keep than by default.
            defense = load_defense("topk:k=2" if (name, num_classes) == ("topk", 2) else name)
            defense.prepare(context(num_classes))
            made[name, num_classes] = defense
        return made[name, num_classes]

    return find


def test_there_are_such_defenses() -> None:
    assert {"mad", "mad_argmax", "modelguard_w", "rounding", "topk"} <= set(deterministic())


@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("name", deterministic())
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 0.3, 3.0, 10.0, 100.0]))
def test_is_on_the_simplex(
    name: str,
    num_classes: int,
    seed: int,
    scale: float,
    prepared: Callable[[str, int], Defense],
    answers: Draw,
    images: Draw,
) -> None:
    one_hot = F.one_hot(torch.arange(2), num_classes).float()
    clean = torch.cat([answers(6, num_classes, seed, scale), one_hot])
    released = prepared(name, num_classes).release(clean, images(len(clean), seed=seed)).double()
    assert float(released.min()) >= 0
    torch.testing.assert_close(released.sum(dim=1), torch.ones(len(clean)).double(), rtol=0, atol=1e-6)
