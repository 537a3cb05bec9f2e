"""Students: what learning changes, and what asking them leaves alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msbench.attacks.learning import imitation_loss
from msbench.attacks.students import SeparateStudents, StackedStudents, Students, build_students
from msbench.targets.architectures import build_clone
from torch import Tensor, nn

SHAPE = (1, 8, 8)


def students(count: int = 2, form: type[Students] = SeparateStudents, **settings: object) -> Any:
    networks = [
        build_clone("lenet5:norm=batch,width=4", num_classes=3, image_shape=SHAPE, seed=seed) for seed in range(count)
    ]
    return form(networks, **{"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0} | settings)


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(5)
    return torch.rand(count, *SHAPE, generator=drawn), torch.randn(count, 3, generator=drawn)


def test_each_student_takes_its_own_step() -> None:
    ours = students()
    alone = [copy.deepcopy(network) for network in ours.networks]
    images, targets = batch()
    loss = ours.learn(images, targets)
    losses = []
    for network, trained in zip(alone, ours.networks, strict=True):
        own = imitation_loss(network.train()(images), targets).mean()
        own.backward()
        losses.append(own.detach())
        for before, after in zip(network.parameters(), trained.parameters(), strict=True):
            assert before.grad is not None
            torch.testing.assert_close(after.detach(), before.detach() - 0.1 * before.grad)
        for name, statistic in network.named_buffers():
            assert torch.equal(statistic, trained.get_buffer(name)), name
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_answers_come_from_evaluation_mode_and_reach_the_images_alone(
    same: Callable[[nn.Module, nn.Module], bool],
) -> None:
    ours = students(3)
    before = [copy.deepcopy(network) for network in ours.networks]
    images = batch()[0].requires_grad_()
    logits = ours.logits(images)
    assert logits.shape == (3, 6, 3)
    torch.testing.assert_close(logits, torch.stack([network.eval()(images) for network in before]))
    logits.sum().backward()
    assert images.grad is not None
    for network, kept in zip(ours.networks, before, strict=True):
        assert same(network, kept)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_a_single_image_is_learned_without_its_statistics() -> None:
    ours = students(1)
    statistics = {name: value.clone() for name, value in ours.networks[0].named_buffers()}
    weights = copy.deepcopy(list(ours.networks[0].parameters()))
    ours.learn(*batch(1))
    assert all(torch.equal(statistics[name], value) for name, value in ours.networks[0].named_buffers())
    assert not all(map(torch.equal, weights, ours.networks[0].parameters()))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    "architecture",
    ["lenet5:norm=batch,width=4", "lenet5:width=4", pytest.param("resnet18_8x", marks=pytest.mark.slow)],
)
def test_stacked_students_are_separate_ones_within_rounding(architecture: str, optimizer: str) -> None:
    networks = [build_clone(architecture, num_classes=3, image_shape=SHAPE, seed=seed).double() for seed in range(3)]
    settings = {"optimizer": optimizer, "lr": 1e-3, "weight_decay": 1e-4}
    separate = SeparateStudents(copy.deepcopy(networks), **settings)  # type: ignore[arg-type]
    stacked = StackedStudents(networks, **settings)  # type: ignore[arg-type]
    for count in (6, 5, 1):
        images, targets = (tensor.double() for tensor in batch(count))
        losses = [students.learn(images, targets) for students in (separate, stacked)]
        torch.testing.assert_close(*losses)
    for index in range(3):
        ours, theirs = stacked.weights(index), separate.weights(index)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, msg=name)
    for count in (6, 1):
        images = batch(count)[0].double().requires_grad_()
        answers = [students.logits(images) for students in (separate, stacked)]
        torch.testing.assert_close(*answers)
        torch.testing.assert_close(*(torch.autograd.grad((answer**2).sum(), images)[0] for answer in answers))
    torch.testing.assert_close(stacked.copy(1)(images), separate.copy(1)(images))


@pytest.mark.parametrize("form", [SeparateStudents, StackedStudents])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_state_round_trips(form: type[Students], optimizer: str, same: Callable[[nn.Module, nn.Module], bool]) -> None:
    ours, other = (students(form=form, optimizer=optimizer) for _ in range(2))
    ours.learn(*batch())
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    for each in (ours, other):
        each.set_lr(0.01)
        each.learn(*batch(4))
    assert all(same(ours.copy(index), other.copy(index)) for index in range(2))


@pytest.mark.parametrize("form", [SeparateStudents, StackedStudents])
def test_a_copy_stays_what_it_was(form: type[Students], same: Callable[[nn.Module, nn.Module], bool]) -> None:
    ours = students(form=form)
    ours.learn(*batch())
    first, again = ours.copy(0), ours.copy(0)
    assert not first.training
    assert all(torch.equal(value, ours.weights(0)[name]) for name, value in first.state_dict().items())
    ours.learn(*batch())
    assert same(first, again)
    assert not same(first, ours.copy(0))


@pytest.mark.parametrize("form", [SeparateStudents, StackedStudents])
def test_pieces_that_fit_give_the_same_step(form: type[Students]) -> None:
    networks = [build_clone("lenet5:width=4", num_classes=3, image_shape=SHAPE, seed=seed) for seed in (0, 1)]
    settings = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
    whole, parts = (form(copy.deepcopy(networks), **settings) for _ in range(2))  # type: ignore[arg-type]
    parts.pieces.size = 4  # type: ignore[attr-defined]
    losses = [students.learn(*batch(10)) for students in (whole, parts)]
    torch.testing.assert_close(*losses)
    for index in (0, 1):
        for name, value in whole.weights(index).items():
            torch.testing.assert_close(parts.weights(index)[name], value, msg=name)


def test_the_cpu_trains_students_separately() -> None:
    built = build_students(students().networks, optimizer="sgd", lr=0.1, weight_decay=0)
    assert isinstance(built, SeparateStudents)


@pytest.mark.parametrize(
    "spec",
    [
        "disguide:batch=4,width=8,latent=8",
        "ideal:images=20,batch=20,width=8,latent=8,generator_steps=3,shift=1",
        "qedg:images=32,batch=32,width=8,latent=8,generator_steps=2,shift=1,round_epochs=2,epochs=3",
        "es_attack:images=20,batch=8,epochs=2,synthesis_steps=4",
        "dualstudent:batch=4,width=8,latent=8",
        "dfme:batch=4,width=8,latent=8",
        "random_noise:batch=4",
    ],
)
def test_weights_decay_as_the_attacks_parameter_says(spec: str, stage: Callable[..., Any]) -> None:
    pupils = stage(f"{spec},optimizer=sgd,weight_decay=0.25").attack.pupils
    assert {group["weight_decay"] for group in pupils.optimizer.param_groups} == {0.25}
