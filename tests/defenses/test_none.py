"""No defense."""

from collections.abc import Callable

import torch
from msbench.defenses.none import NoDefense
from torch import Tensor


def test_changes_nothing(answers: Callable[..., Tensor], images: Callable[..., Tensor]) -> None:
    probs = answers()
    assert torch.equal(NoDefense().release(probs, images(50)), probs)
