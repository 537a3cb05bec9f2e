"""The stingy teacher: how many classes it keeps, and that it is the sparse softmax it claims to be."""

from collections.abc import Callable

import pytest
import torch
from msbench.defenses.base import DefenseContext
from msbench.defenses.stingy_teacher import StingyTeacher
from torch import Tensor

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("share", "num_classes", "kept"),
    [
        (0.1, 100, 10),
        (0.1, 200, 20),
        (0.1, 30, 3),
        (0.1, 10, 2),
        (0.1, 43, 4),
        (0.2, 43, 9),
        (0.5, 2, 2),
        (1.0, 10, 10),
    ],
)
def test_keeps_a_share_of_the_classes(share: float, num_classes: int, kept: int, context: Make, answers: Draw) -> None:
    stingy = StingyTeacher(share=share)
    stingy.prepare(context(num_classes))
    released = stingy.release(answers(50, num_classes), torch.zeros(0))
    assert ((released > 0).sum(dim=1) == kept).all()


def test_is_a_softmax_over_the_largest_logits(context: Make) -> None:
    logits = 3 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    stingy = StingyTeacher()
    stingy.prepare(context(30))
    threshold = logits.topk(3, dim=1).values[:, -1:]
    sparse = logits.masked_fill(logits < threshold, -torch.inf).softmax(dim=1)
    torch.testing.assert_close(stingy.release(logits.softmax(dim=1), torch.zeros(0)), sparse, rtol=0, atol=1e-6)
