"""Dual Student against its paper: what it asks, what it trains on, and what it walks away with."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msbench.attacks.dualstudent import disagreement
from msbench.attacks.learning import imitation_loss, imitation_targets
from torch import Tensor, nn

SMALL = "dualstudent:batch=4,width=8,latent=8"


class Constant(nn.Module):
    """Answers every image with the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def seen_by(network: nn.Module) -> list[Tensor]:
    """Collects what a network is asked from now on."""
    images: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0].detach().clone()))
    return images


def test_a_step_asks_five_batches(stage: Callable[..., Any]) -> None:
    on = stage(SMALL)
    for step in (1, 2, 3):
        on.attack.step()
        assert on.victim.spent == step * 5 * 4
    assert [len(images) for images in on.asked] == [5 * 4] * 3


def test_the_generator_step_asks_nothing_and_leaves_the_students(
    stage: Callable[..., Any], same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    on = stage(SMALL)
    before = copy.deepcopy(on.attack)
    on.attack._generator_step()
    assert on.victim.spent == 0
    assert on.asked == []
    assert all(same(now, then) for now, then in zip(on.attack.pupils.networks, before.pupils.networks, strict=True))
    assert not same(on.attack.generator, before.generator)
    assert all(parameter.requires_grad for parameter in on.attack.pupils.networks[0].parameters())


def test_the_students_start_differently(
    stage: Callable[..., Any], same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    on = stage("dualstudent:students=3,width=8,latent=8")
    first, second, third = on.attack.pupils.networks
    assert not (same(first, second) or same(first, third) or same(second, third))


@pytest.mark.parametrize("where", ["post_tanh", "pre_tanh"])
@pytest.mark.parametrize("identical", [True, False])
def test_identical_students_give_the_generator_no_gradient(
    stage: Callable[..., Any], identical: bool, where: str
) -> None:
    on = stage(f"{SMALL},generator_step={where}")
    first, second = on.attack.pupils.networks
    if identical:
        second.load_state_dict(first.state_dict())
    raised = on.attack._generator_step()
    gradients = torch.cat([parameter.grad.flatten() for parameter in on.attack.generator.parameters()])
    assert bool((gradients == 0).all()) == identical
    assert (float(raised) == 0) == identical


def test_the_generator_step_raises_the_disagreement(stage: Callable[..., Any]) -> None:
    on = stage(f"{SMALL},lr_generator=0.01")
    before = on.attack.diagnostics()["disagreement_l1"]
    for _ in range(30):
        on.attack._generator_step()
    assert on.attack.diagnostics()["disagreement_l1"] > 1.5 * before


def test_three_students_disagree_by_the_mean_of_all_pairs(stage: Callable[..., Any]) -> None:
    on = stage("dualstudent:students=3,width=8,latent=8")
    on.attack.pupils.networks = [Constant(0.0, 0.0), Constant(1.0, 3.0), Constant(2.0, 0.0)]
    # |a - b| is (1 + 3) / 2, |a - c| is (2 + 0) / 2, |b - c| is (1 + 3) / 2.
    assert on.attack.diagnostics() == {"disagreement_l1": pytest.approx((2 + 1 + 2) / 3)}


@pytest.mark.parametrize(("on", "expected"), [("logits", (5.0, math.log(3) / 2)), ("probabilities", (0.0, 0.25))])
def test_what_students_disagree_on(stage: Callable[..., Any], on: str, expected: tuple[float, float]) -> None:
    attack = stage(f"{SMALL},disagree_on={on}").attack
    for other, value in zip((Constant(5.0, 5.0), Constant(0.0, math.log(3))), expected, strict=True):
        attack.pupils.networks = [Constant(0.0, 0.0), other]
        assert float(disagreement(attack._outputs(torch.rand(3, 1, 4, 4)))) == pytest.approx(value)


@pytest.mark.parametrize("where", ["post_tanh", "pre_tanh"])
def test_where_disagreement_is_raised(stage: Callable[..., Any], where: str) -> None:
    on = stage(f"{SMALL},generator_step={where}")
    generator = copy.deepcopy(on.attack.generator).train()
    latents = generator.sample(4, copy_of(on.attack.latents))
    unbounded = generator.before_tanh(latents)
    expected = ((unbounded if where == "pre_tanh" else unbounded.tanh()) + 1) / 2
    for network in on.attack.pupils.networks:
        collected = seen_by(network)
    on.attack._generator_step()
    [images] = collected
    assert torch.equal(images, expected.detach())
    assert (float(images.min()) < 0) == (where == "pre_tanh")


def copy_of(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())


def test_the_two_generator_steps_lead_elsewhere(
    stage: Callable[..., Any], same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    post, pre = (stage(f"{SMALL},generator_step={where}") for where in ("post_tanh", "pre_tanh"))
    assert same(post.attack.generator, pre.attack.generator)
    post.attack.step()
    pre.attack.step()
    assert not same(post.attack.generator, pre.attack.generator)


def test_all_students_train_on_the_batch_that_was_asked(
    stage: Callable[..., Any], same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    on = stage(f"{SMALL},students=3")
    generator = copy.deepcopy(on.attack.generator).eval()
    latents = copy_of(on.attack.latents)
    collected = [seen_by(network) for network in on.attack.pupils.networks]
    on.attack._generator_step = lambda: torch.zeros(())  # else the generator moves first
    on.attack.step()
    [asked] = on.asked
    assert torch.equal(asked, generator(generator.sample(20, latents)).detach())
    for images in collected:
        assert torch.equal(torch.cat(images), asked)
        assert [len(batch) for batch in images] == [4] * 5
    assert same(on.attack.generator, generator)  # in evaluation mode: its statistics stay


@pytest.mark.parametrize("labels_only", [False, True])
def test_the_students_loss_follows_the_interface(stage: Callable[..., Any], labels_only: bool) -> None:
    on = stage(f"{SMALL},student_steps=1,floor=1e-3", labels_only=labels_only)
    students = [on.attack.context.new_clone(f"student {i}") for i in (0, 1)]
    report = on.attack.step()
    [images] = on.asked
    answers = on.logits(images).softmax(dim=1)
    targets = imitation_targets(answers, floor=1e-3, labels_only=labels_only)
    losses = [imitation_loss(student.train()(images), targets).mean() for student in students]
    torch.testing.assert_close(report.losses["student"], torch.stack(losses).mean().detach())


def test_rates_follow_the_budget(stage: Callable[..., Any]) -> None:
    on = stage("dualstudent:batch=2,width=8,latent=8,lr_student=1,lr_generator=0.5", budget=100)
    factors = [1, 0.3, 0.3, 0.09, 0.09, 0.027, 0.027, 0.027, 0.027, 0.027]
    for factor in factors:
        on.attack.step()
        assert on.attack.pupils.optimizer.param_groups[0]["lr"] == pytest.approx(factor)
        assert on.attack.generator_optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * factor)
    assert on.victim.remaining == 0


def test_the_average_is_updated_in_every_tenth_iteration_as_released(stage: Callable[..., Any]) -> None:
    on = stage("dualstudent:batch=2,width=8,latent=8", budget=220)
    updates = []
    for _ in range(21):
        on.attack.step()
        updates.append(on.attack.average.updates)
    assert updates == [0] * 9 + [1] * 10 + [2] * 2


def test_the_clone_is_the_first_students_average_every_tenth_batch(
    stage: Callable[..., Any], same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    on = stage(f"{SMALL},ema_every=10")
    clones, students = [], []
    for _ in range(4):  # 5, 10, 15 and 20 student batches
        on.attack.step()
        clones.append(on.attack.clone())
        students.append(copy.deepcopy(on.attack.pupils.networks[0]))
    assert same(clones[0], students[0])  # no average yet
    assert same(clones[1], students[1])  # the first update copies
    assert same(clones[2], clones[1])
    assert not same(students[2], students[1])
    pairs = [clone.state_dict() for clone in (clones[1], clones[3])]
    for key, student in students[3].state_dict().items():
        blend = 0.9 * pairs[0][key] + 0.1 * student if student.is_floating_point() else student
        torch.testing.assert_close(pairs[1][key], blend)


def test_the_clone_is_a_copy_in_evaluation_mode(
    stage: Callable[..., Any], same: Callable[[nn.Module, nn.Module], bool]
) -> None:
    on = stage(SMALL)
    on.attack.step()
    clone = on.attack.clone()
    kept = copy.deepcopy(clone)
    on.attack.step()
    assert same(clone, kept)
    assert not any(module.training for module in clone.modules())


def test_diagnostics_change_nothing(stage: Callable[..., Any], same: Callable[[nn.Module, nn.Module], bool]) -> None:
    watched, alone = stage(SMALL), stage(SMALL)
    for _ in range(3):
        watched.attack.step()
        watched.attack.diagnostics()
        alone.attack.step()
    assert same(watched.attack.pupils.networks[0], alone.attack.pupils.networks[0])
    assert same(watched.attack.generator, alone.attack.generator)


def test_it_learns_the_victim(stage: Callable[..., Any]) -> None:
    on = stage("dualstudent:batch=32,width=8,latent=8,lr_student=0.05", budget=6000)
    before = on.attack.clone()
    on.run()
    agreement = [on.agreement(clone) for clone in (before, on.attack.clone())]
    assert agreement[1] > max(0.5, agreement[0] + 0.2)
