"""The projection onto the simplex, against what characterizes it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.defenses.simplex import project_to_simplex

seeds = st.integers(0, 2**32)
classes = st.sampled_from([2, 3, 10, 100, 1000])
scales = st.sampled_from([1e-9, 0.1, 1.0, 100.0, 1e6])


@settings(deadline=None, max_examples=50)
@given(seed=seeds, num_classes=classes, scale=scales)
def test_lands_on_the_simplex_and_nowhere_closer(seed: int, num_classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    v = scale * torch.randn(20, num_classes, generator=generator, dtype=torch.float64)
    x = project_to_simplex(v)
    assert (x >= 0).all()
    torch.testing.assert_close(x.sum(dim=1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-9)
    # A point of a convex set is the closest to v exactly if no vertex lies beyond the plane through it normal
    # to v - x: (v - x)·(e_k - x) ≤ 0 for all k.
    outward = v - x
    beyond = outward - (outward * x).sum(dim=1, keepdim=True)
    assert float(beyond.max()) <= 1e-9 * max(1.0, scale)


@settings(deadline=None, max_examples=25)
@given(seed=seeds, num_classes=classes)
def test_leaves_the_simplex_alone(seed: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (5 * torch.randn(20, num_classes, generator=generator, dtype=torch.float64)).softmax(dim=1)
    torch.testing.assert_close(project_to_simplex(x), x, rtol=0, atol=1e-12)


def test_by_hand() -> None:
    v = torch.tensor([[0.5, 0.5, 0.5], [2.0, 0.0, 0.0], [0.9, 0.5, -3.0], [1e9, 0.0, 0.0], [0.0, 0.0, 0.0]])
    third = 1 / 3
    expected = [[third] * 3, [1, 0, 0], [0.7, 0.3, 0], [1, 0, 0], [third] * 3]
    torch.testing.assert_close(project_to_simplex(v), torch.tensor(expected), rtol=0, atol=1e-6)
