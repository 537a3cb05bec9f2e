"""Targets, losses, schedules and optimizers, against values worked out by hand."""

import copy
import math

import pytest
import torch
from msbench.attacks.learning import (
    OptimizerName,
    Schedule,
    build_optimizer,
    decay,
    descend,
    distillation_loss,
    imitation_loss,
    imitation_targets,
    progress,
    recover_logits,
    set_lr,
)
from msbench.targets.blackbox import BlackBox
from torch import Tensor, nn


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_recovered_logits_are_the_true_ones_centered(scale: float) -> None:
    logits = scale * torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centered = logits - logits.mean(dim=1, keepdim=True)
    recovered = recover_logits(logits.softmax(dim=1), floor=1e-300)
    assert recovered.dtype == torch.float64
    torch.testing.assert_close(recovered, centered, atol=1e-5, rtol=0)


def test_the_floor_is_what_a_zero_becomes() -> None:
    recovered = recover_logits(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), floor=1e-4)
    low = math.log(1e-4)
    torch.testing.assert_close(recovered, torch.tensor([[-0.75 * low, *[0.25 * low] * 3]]))


def test_probabilities_above_the_floor_are_untouched_by_it() -> None:
    probs = torch.tensor([[0.9, 0.07, 0.03]], dtype=torch.float64)
    assert torch.equal(recover_logits(probs, floor=0.03), recover_logits(probs, floor=1e-30))
    assert not torch.equal(recover_logits(probs, floor=0.031), recover_logits(probs, floor=1e-30))


def test_soft_loss_is_the_l1_distance_to_the_recovered_logits() -> None:
    answers = torch.tensor([[1.0, 0.0], [0.5, -0.5]]).softmax(dim=1)  # both recover to (0.5, -0.5)
    logits = torch.tensor([[1.0, 0.5], [0.5, -0.5]])  # the student's own logits are not centered
    loss = imitation_loss(logits, imitation_targets(answers, floor=1e-7, labels_only=False))
    torch.testing.assert_close(loss, torch.tensor([(0.5 + 1.0) / 2, 0.0]))


def test_label_loss_is_the_cross_entropy_to_the_top_class() -> None:
    answers = torch.tensor([[0.4, 0.6], [1.0, 0.0]])
    targets = imitation_targets(answers, floor=1e-7, labels_only=True)
    loss = imitation_loss(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), targets)
    torch.testing.assert_close(loss, torch.tensor([math.log(1 + math.e**2), math.log(1 + math.e**-2)]))


def test_distillation_is_the_cross_entropy_with_probabilities_or_with_labels() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    low, high = math.log(1 + math.e**-2), math.log(1 + math.e**2)
    torch.testing.assert_close(distillation_loss(logits, torch.tensor([0, 1])), torch.tensor([low, high]))
    mixed = distillation_loss(logits, torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    torch.testing.assert_close(mixed, torch.tensor([low, 0.25 * low + 0.75 * high]))


@pytest.mark.parametrize("labels_only", [False, True])
def test_losses_are_float32_whatever_the_student_computes_in(labels_only: bool) -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = imitation_targets(torch.full((3, 4), 0.25), floor=1e-7, labels_only=labels_only)
    loss = imitation_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, imitation_loss(logits.float(), targets))


@pytest.mark.parametrize(
    ("schedule", "share", "factor"),
    [
        ("multistep", 0.0, 1.0),
        ("multistep", 0.0999, 1.0),
        ("multistep", 0.1, 0.3),
        ("multistep", 0.2999, 0.3),
        ("multistep", 0.3, 0.09),
        ("multistep", 0.4999, 0.09),
        ("multistep", 0.5, 0.027),
        ("multistep", 1.0, 0.027),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.25, 0.5 + math.sqrt(0.125)),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("constant", 0.0, 1.0),
        ("constant", 1.0, 1.0),
    ],
)
def test_schedule(schedule: Schedule, share: float, factor: float) -> None:
    assert decay(schedule, share) == pytest.approx(factor, abs=1e-12)


def test_progress_is_the_share_of_the_budget_that_is_spent() -> None:
    victim = BlackBox(lambda images: images.flatten(1), budget=10, num_classes=1, image_shape=(1, 1, 1))
    assert progress(victim) == 0
    victim.query(torch.zeros(3, 1, 1, 1))
    assert progress(victim) == 0.3
    victim.query(torch.zeros(7, 1, 1, 1))
    assert progress(victim) == 1


def test_optimizers() -> None:
    network = nn.Linear(2, 2)
    sgd = build_optimizer("sgd", network.parameters(), lr=0.5, weight_decay=0.25)
    adam = build_optimizer("adam", network.parameters(), lr=0.5, weight_decay=0.25)
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adam, torch.optim.Adam)
    assert sgd.defaults["momentum"] == 0.9
    assert {optimizer.defaults["lr"] for optimizer in (sgd, adam)} == {0.5}
    assert {optimizer.defaults["weight_decay"] for optimizer in (sgd, adam)} == {0.25}


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_loaded_rate_has_the_form_of_the_run_that_loads_it(name: OptimizerName, recorded: bool) -> None:
    def build(recorded: bool) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(torch.ones(3))
        return weight, build_optimizer(name, [weight], lr=0.5, weight_decay=0.125, recorded=recorded)

    (kept, stays), (moved, loads) = build(not recorded), build(recorded)
    descend(stays, kept.square().sum())
    loads.load_state_dict(copy.deepcopy(stays.state_dict()))
    moved.data.copy_(kept.data)
    [group] = loads.param_groups
    rate = group["lr"]
    assert isinstance(rate, Tensor if recorded else float)
    assert group.get("capturable", recorded) == recorded
    for weight, optimizer in ((kept, stays), (moved, loads)):
        set_lr(optimizer, 0.25)
        descend(optimizer, weight.square().sum())
    assert rate == (0.25 if recorded else 0.5)  # a recorded step finds the new rate in the old place
    torch.testing.assert_close(moved, kept)


def test_the_rate_is_set_in_every_group() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 7.0}], lr=1.0)
    set_lr(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_descending_twice_forgets_the_first_gradient() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    descend(optimizer, 2 * weight.sum())
    descend(optimizer, 2 * weight.sum())
    assert weight.item() == -1.0
