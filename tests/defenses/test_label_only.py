"""Label only."""

import torch
from msbench.defenses.label_only import LabelOnly


def test_by_hand() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]])
    released = LabelOnly().release(probs, torch.zeros(0))
    assert torch.equal(released, expected)
    assert released.dtype == torch.float32
