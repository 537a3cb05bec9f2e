"""Transfer attacks stay in their ball, take the step that the arithmetic gives, and leave the models alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.benchmark.transfer import ascend, transfer_success
from torch import Tensor, nn

SHAPE = (1, 6, 6)
CLASSES = 4


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def network(seed: int) -> nn.Module:
    """Random, but with all classes about equally likely."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        last = nn.Linear(288, CLASSES)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), last)
    last.bias -= model.eval()(images(1000, seed=1)).mean(dim=0)
    return model.requires_grad_(False)


@given(
    epsilon=st.floats(0.001, 1.5),
    steps=st.integers(1, 12),
    size=st.floats(0.0005, 2.0),
    seed=st.integers(0, 1000),
    start_off_center=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_perturbed_images_stay_in_the_ball_and_in_the_box(
    epsilon: float, steps: int, size: float, seed: int, start_off_center: bool
) -> None:
    model, center = network(seed % 3), images(6, seed)
    center[0], center[1] = 0.0, 1.0  # black and white lie on the box's edge
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty_like(center).uniform_(-epsilon, epsilon, generator=generator)
    start = (center + noise).clamp(0, 1) if start_off_center else center
    labels = model(center).argmax(dim=1)
    found = ascend(model, center, start, labels, epsilon, steps=steps, size=size)
    assert float((found - center).abs().max()) <= epsilon + 1e-6
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
    assert not found.requires_grad


def test_one_step_on_a_linear_model_is_the_sign_of_the_hand_computed_gradient() -> None:
    linear = nn.Linear(36, CLASSES)
    model = nn.Sequential(nn.Flatten(), linear).eval()
    center, labels = 0.25 + 0.5 * images(10), torch.arange(10) % CLASSES
    # Of cross-entropy after softmax: W' (p - e_y).
    with torch.no_grad():
        excess = model(center).softmax(dim=1) - nn.functional.one_hot(labels, CLASSES)
        gradient = (excess @ linear.weight).view_as(center)
    found = ascend(model, center, center, labels, 0.1, steps=1, size=0.1)
    torch.testing.assert_close(found, center + 0.1 * gradient.sign())


def test_more_steps_raise_the_loss_further() -> None:
    model, center = network(0), images(200)
    labels = model(center).argmax(dim=1)
    losses = []
    for steps in (1, 4, 16):
        found = ascend(model, center, center, labels, 0.2, steps=steps, size=0.03)
        losses.append(float(nn.functional.cross_entropy(model(found), labels)))
    assert losses == sorted(losses)
    assert losses[0] > float(nn.functional.cross_entropy(model(center), labels))


def test_the_target_as_its_own_clone_is_fooled_more_than_by_noise_or_by_a_stranger() -> None:
    target, center = network(0), images(500)
    labels = target(center).argmax(dim=1)
    epsilon = 0.08
    itself = transfer_success(target, target, center, labels, epsilon=epsilon, seed=0)
    stranger = transfer_success(network(1), target, center, labels, epsilon=epsilon, seed=0)
    sign = torch.randint(2, center.shape, generator=torch.Generator().manual_seed(9)) * 2 - 1
    noise = float((target((center + epsilon * sign).clamp(0, 1)).argmax(dim=1) != labels).float().mean())
    for name in ("fgsm", "bim", "pgd"):
        assert getattr(itself, name) > max(noise, getattr(stranger, name)) + 0.2, name


def test_success_is_the_share_of_all_images_whatever_the_batch() -> None:
    target, clone, center = network(0), network(1), images(101)
    labels = target(center).argmax(dim=1)
    whole = transfer_success(clone, target, center, labels, epsilon=0.3, seed=0)
    split = transfer_success(clone, target, center, labels, epsilon=0.3, seed=0, batch=13)
    assert (whole.fgsm, whole.bim) == (split.fgsm, split.bim)
    assert whole.images == split.images == 101
    found = ascend(clone, center, center, labels, 0.3, steps=1, size=0.3)
    assert whole.fgsm == int((target(found).argmax(dim=1) != labels).sum()) / 101


def test_the_seed_determines_the_random_start() -> None:
    target, clone, center = network(0), network(1), images(300)
    labels = target(center).argmax(dim=1)
    runs = [transfer_success(clone, target, center, labels, epsilon=0.2, seed=seed) for seed in (3, 3)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_or_none(count: int) -> None:
    target = network(0)
    center = images(count)
    found = transfer_success(network(1), target, center, torch.zeros(count).long(), epsilon=0.3, seed=0)
    assert found.images == count
    if count == 0:
        assert (found.fgsm, found.bim, found.pgd) == (0.0, 0.0, 0.0)


def test_a_clone_that_works_in_place_moves_no_ball() -> None:
    class InPlace(nn.Module):
        """Blackens the images that it answers about."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = model(images)
            images.data.zero_()
            return logits

    model, center = network(1), images(20)
    labels = model(center).argmax(dim=1)
    plain, other = (ascend(each, center, center, labels, 0.1, steps=3, size=0.1) for each in (model, InPlace()))
    assert torch.equal(center, images(20))
    assert torch.equal(plain, other)


def test_models_and_global_randomness_are_left_alone() -> None:
    target, clone, center = network(0), network(1), images(50)
    labels = target(center).argmax(dim=1)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (target, clone)]
    random_state, original = torch.get_rng_state(), center.clone()
    transfer_success(clone, target, center, labels, epsilon=0.3, seed=0)
    for model, state in zip((target, clone), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(module.training for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.equal(center, original)
