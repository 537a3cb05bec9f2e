"""Top-k truncation."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.defenses.base import DefenseContext
from msbench.defenses.label_only import LabelOnly
from msbench.defenses.topk import TopK
from msbench.errors import BadParameter
from torch import Tensor

NO_IMAGES = torch.zeros(0)


def test_by_hand() -> None:
    released = TopK(k=2).release(torch.tensor([[0.5, 0.1, 0.3, 0.1]]), NO_IMAGES)
    torch.testing.assert_close(released, torch.tensor([[0.625, 0.0, 0.375, 0.0]]))


def test_ties_go_to_the_lowest_class() -> None:
    probs = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.3, 0.3, 0.0, 0.3], [0.0, 0.0, 1.0, 0.0, 0.0]])
    kept = TopK(k=2).release(probs, NO_IMAGES)
    expected = [[0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 1, 0, 0]]
    assert torch.equal(kept, torch.tensor(expected))


def test_ties_go_to_the_lowest_class_among_many() -> None:
    kept = TopK(k=7).release(torch.full((3, 1000), 0.001), NO_IMAGES)
    assert torch.equal(kept.nonzero()[:, 1], torch.arange(7).repeat(3))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), num_classes=st.sampled_from([2, 10, 100]), data=st.data())
def test_keeps_k_classes_in_proportion(
    answers: Callable[..., Tensor], seed: int, num_classes: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, num_classes))
    probs = answers(20, num_classes, seed)
    released = TopK(k=k).release(probs, NO_IMAGES)
    kept = released > 0
    assert (kept.sum(dim=1) == k).all()
    assert (probs.where(kept, 1.0).amin(dim=1) >= probs.where(~kept, 0.0).amax(dim=1)).all()
    total = probs.where(kept, 0.0).sum(dim=1, keepdim=True)
    torch.testing.assert_close(released * total, probs.where(kept, 0.0))


def test_one_class_is_the_label_and_declared_so(answers: Callable[..., Tensor]) -> None:
    probs = answers(100)
    assert torch.equal(TopK(k=1).release(probs, NO_IMAGES), LabelOnly().release(probs, NO_IMAGES))
    assert TopK(k=1).traits.labels_only
    assert not TopK(k=2).traits.labels_only
    assert not TopK.traits.labels_only


def test_more_classes_than_there_are(context: Callable[..., DefenseContext]) -> None:
    with pytest.raises(BadParameter, match=r"^.*: k=12 exceeds the target's 10 classes: choose 1 to 10$"):
        TopK(k=12).prepare(context(num_classes=10))
    with pytest.raises(BadParameter, match="k=0 is out of range"):
        TopK(k=0)
