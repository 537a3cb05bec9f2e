"""Recoveries: what they restore, what they charge, and what they pass on."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from msbench.attacks.recovery.argmax import Argmax
from msbench.attacks.recovery.averaging import Averaging
from msbench.attacks.recovery.base import Recovery
from msbench.attacks.recovery.none import NoRecovery
from msbench.components import load
from msbench.defenses.base import Defense
from msbench.errors import BudgetExceeded
from msbench.targets.blackbox import BlackBox
from torch import Tensor


def box(answer: Callable[[Tensor], Tensor], *, budget: int = 10, labels_only: bool = False) -> BlackBox:
    return BlackBox(answer, budget=budget, num_classes=4, image_shape=(1, 2, 2), labels_only=labels_only)


def soft(images: Tensor) -> Tensor:
    """Different answers for different images."""
    return (5 * images.flatten(1)).softmax(dim=1)


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class Counter:
    """Answers the n-th call with n in the first class."""

    def __init__(self) -> None:
        self.calls: list[Tensor] = []

    def __call__(self, asked: Tensor) -> Tensor:
        self.calls.append(asked)
        answers = torch.zeros(len(asked), 4)
        answers[:, 0] = len(self.calls)
        return answers


def test_none_passes_everything_on() -> None:
    victim = box(soft)
    seen = NoRecovery().wrap(victim)
    assert torch.equal(seen.query(images(3)), soft(images(3)))
    assert (seen.budget, seen.spent, seen.remaining) == (10, 3, 7)
    assert (seen.num_classes, seen.image_shape, seen.labels_only) == (4, (1, 2, 2), False)
    assert NoRecovery().wrap(box(soft, labels_only=True)).labels_only


def test_argmax_is_one_hot_at_the_top_and_ties_go_to_the_lowest_class() -> None:
    answers = torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.0, 0.5]])
    seen = Argmax().wrap(box(lambda _: answers))
    assert seen.query(images(3)).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert seen.labels_only
    assert seen.spent == 3


@pytest.mark.parametrize("defense", ["topk:k=1", "topk:k=3", "temperature:temperature=2"])
def test_argmax_undoes_an_argmax_preserving_defense_down_to_labels(defense: str) -> None:
    def released(spec: str) -> Callable[[Tensor], Tensor]:
        filters = cast(Defense, load("defense", spec))
        return lambda asked: filters.release(soft(asked), asked)

    restored = Argmax().wrap(box(released(defense), budget=200)).query(images(200))
    labels = box(released("label_only"), budget=200).query(images(200))
    assert torch.equal(restored, labels)


def test_averaging_charges_every_repeat_and_averages_exactly() -> None:
    counter = Counter()
    victim = box(counter, budget=30)
    seen = Averaging(repeats=4).wrap(victim)
    answers = seen.query(images(3))
    assert answers[:, 0].tolist() == [(1 + 2 + 3 + 4) / 4] * 3
    assert victim.spent == 12
    assert all(torch.equal(asked, images(3)) for asked in counter.calls)


@pytest.mark.parametrize(
    ("answered", "taken"),
    [([2, 1, 1], 1), ([2, 1], 2), ([3, 2, 1, 1, 2], 2), ([0, 3, 3, 1, 1], 3), ([1, 3, 3, 3], 3), ([2], 2)],
)
def test_of_labels_averaging_takes_the_most_frequent_and_then_the_first(answered: list[int], taken: int) -> None:
    calls = iter(answered)

    def labels(asked: Tensor) -> Tensor:
        return torch.eye(4)[[next(calls)] * len(asked)]

    seen = Averaging(repeats=len(answered)).wrap(box(labels, labels_only=True))
    assert seen.labels_only
    assert seen.query(images(1)).tolist() == [torch.eye(4)[taken].tolist()]


def test_averaging_counts_in_its_own_images() -> None:
    victim = box(soft, budget=11)
    seen = Averaging(repeats=3).wrap(victim)
    assert (seen.budget, seen.spent, seen.remaining) == (3, 0, 3)
    seen.query(images(2))
    assert (seen.budget, seen.spent, seen.remaining) == (3, 2, 1)
    seen.query(images(1))
    assert (seen.budget, seen.spent, seen.remaining) == (3, 3, 0)
    assert (victim.spent, victim.remaining) == (9, 2)


@pytest.mark.parametrize("count", [4, 5, 11])
def test_averaging_refuses_a_batch_whose_repeats_do_not_all_fit_and_charges_nothing(count: int) -> None:
    victim = box(soft, budget=11)
    with pytest.raises(BudgetExceeded):
        Averaging(repeats=3).wrap(victim).query(images(count))
    assert victim.spent == 0


def test_averaging_once_is_no_recovery() -> None:
    assert torch.equal(Averaging(repeats=1).wrap(box(soft)).query(images(5)), soft(images(5)))


def test_averaging_noise_brings_it_down_by_the_root_of_the_repeats() -> None:
    drawn = torch.Generator().manual_seed(1)

    def noisy(asked: Tensor) -> Tensor:
        return soft(asked) + 0.1 * torch.randn(len(asked), 4, generator=drawn)

    asked = images(500)
    once, often = (
        float((Averaging(repeats=repeats).wrap(box(noisy, budget=8000)).query(asked) - soft(asked)).std())
        for repeats in (1, 16)
    )
    assert once == pytest.approx(0.1, rel=0.1)
    assert often == pytest.approx(0.025, rel=0.1)


def test_recoveries_stack() -> None:
    victim = box(soft, budget=12)
    seen: Recovery = Argmax().wrap(Averaging(repeats=3).wrap(victim))
    assert torch.equal(seen.query(images(2)).argmax(dim=1), soft(images(2)).argmax(dim=1))
    assert (seen.budget, seen.spent, seen.remaining) == (4, 2, 2)
    assert victim.spent == 6
