"""What the harness, each defense and the flagship attack cost, as multiples of a plain forward pass of the target.

The target is an untrained LeNet-5 on 1x28x28 images: a small one, so that these ratios are about the largest that
a user can meet. Plain is a pass as torch computes it unless told otherwise, as it is for attacks (yardsticks.py):
msbench lays its networks out in channels_last, and a yardstick must not change with what msbench makes faster.
Run with ``pytest tests/performance/test_speed.py --benchmark-only -n 0``: there, and nowhere else,
what takes longer than its limit fails.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from msbench.attacks.base import AttackContext
from msbench.attacks.dualstudent import DualStudent
from msbench.benchmark.checks import tiny_images
from msbench.benchmark.traffic import Traffic
from msbench.components import names
from msbench.defenses.base import DefenseContext, load_defense
from msbench.defenses.deployment import Deployment
from msbench.defenses.mad import MAD
from msbench.targets.architectures import build_network
from msbench.targets.blackbox import BlackBox
from msbench.targets.target import Target
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (1, 28, 28)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

LIMITS = {"mad": 5.0, "modelguard_w": 5.0}
"""The largest ratios of output defenses that keep no state, at 256 images and 100 classes. The target's forward pass is
part of them, and so is a surrogate's where there is one."""
LIMIT = 2.0
"""That of all others."""
BACKWARD_PASSES = 100
"""How many times faster than backward passes MAD is to be at 100 classes."""

Compare = Callable[..., None]


def deployment(defense: str, classes: int) -> Deployment:
    """An untrained target behind a prepared defense."""
    network = partial(build_network, "lenet5", num_classes=classes, image_shape=SHAPE)
    target = Target(network(seed=0), mean=(0.5,), std=(0.25,), num_classes=classes, image_shape=SHAPE)
    loaded = load_defense(defense)
    loaded.prepare(
        DefenseContext(
            num_classes=classes,
            image_shape=SHAPE,
            device=DEVICE,
            seed=0,
            new_surrogate=lambda seed: network(seed=seed).to(DEVICE).eval(),
            target=lambda: target,
            data=lambda: tiny_images(2, classes, SHAPE),
            auxiliary=lambda _: tiny_images(3, classes, SHAPE),
        )
    )
    return Deployment(target.to(DEVICE).eval().requires_grad_(False), loaded)


def images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def black_box(deployed: Deployment, classes: int) -> BlackBox:
    """As the runner builds it, with a budget that no measurement spends."""
    answer = Traffic(deployed, "anybody").answer
    return BlackBox(answer, budget=10**9, num_classes=classes, image_shape=SHAPE)


def plain(target: Target, batch: Tensor) -> Callable[[], Tensor]:
    """The yardstick: the target's answers to a batch, in torch's default layout."""
    network = copy.deepcopy(target).to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def forward() -> Tensor:
        answers: Tensor = network(batch).softmax(dim=1)
        return answers

    return forward


def test_black_box(compare: Compare) -> None:
    deployed, batch = deployment("none", 10), images(256)
    box = black_box(deployed, 10)
    compare(
        lambda: box.query(batch),
        plain(deployed.target, batch),
        what="black box, undefended",
        images=256,
        classes=10,
    )


@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("count", [1, 256])
@pytest.mark.parametrize("name", names("defense"))
def test_defense(compare: Compare, name: str, count: int, classes: int) -> None:
    deployed, batch = deployment(name, classes), images(count)
    traits = deployed.defense.traits
    limited = traits.stage == "output" and not traits.stateful and (count, classes) == (256, 100)
    compare(
        lambda: deployed.serve(batch),
        plain(deployed.target, batch),
        what=f"defense {name}",
        images=count,
        classes=classes,
        limit=LIMITS.get(name, LIMIT) if limited else math.inf,
    )


def by_backward_passes(surrogate: nn.Module, clean: Tensor, batch: Tensor) -> Tensor:
    """MAD's classes (N,), as the official code finds them: K backward passes to the last layer, image by image."""
    (*_, last) = (module for module in surrogate.modules() if isinstance(module, nn.Linear))
    last.requires_grad_(True)
    chosen = []
    for image, answer in zip(batch, clean, strict=True):
        logs = surrogate(image.unsqueeze(0)).double().log_softmax(dim=1)[0]
        rows = [torch.autograd.grad(-log, last.weight, retain_graph=True)[0].flatten() for log in logs]
        jacobian = torch.stack(rows).double()
        course = F.normalize(answer @ jacobian, dim=0)
        chosen.append((F.normalize(jacobian, dim=1) - course).square().sum(dim=1).argmax())
    return torch.stack(chosen)


@pytest.mark.parametrize("classes", [10, 100])
def test_mad_beside_backward_passes(compare: Compare, classes: int) -> None:
    """Ratio to one backward pass a class and image, which choose the same classes and gain nothing from batches."""
    deployed, batch = deployment("mad", classes), images(256)
    mad = deployed.defense
    assert isinstance(mad, MAD)
    clean = torch.rand(256, classes, generator=torch.Generator().manual_seed(1)).softmax(dim=1).double().to(DEVICE)
    surrogate, some = copy.deepcopy(mad.surrogate), (clean[:16], batch[:16])
    goal = mad.goal(*some).argmax(dim=1)
    assert (goal == by_backward_passes(surrogate, *some)).float().mean() > 0.9, "near ties may fall otherwise"
    compare(
        lambda: mad.release(clean, batch),
        lambda: by_backward_passes(surrogate, *some),
        what="mad, beside K backward passes",
        images=256,
        classes=classes,
        beside=16,
        limit=1 / BACKWARD_PASSES if classes == 100 else math.inf,
    )


def test_dual_student_iteration(compare: Compare) -> None:
    deployed, batch = deployment("none", 10), images(256)
    attack = DualStudent()
    attack.setup(
        black_box(deployed, 10),
        AttackContext(
            device=DEVICE,
            seed=0,
            precision=torch.float32,
            build_clone=lambda seed: build_network("lenet5", num_classes=10, image_shape=SHAPE, seed=seed),
        ),
    )
    queries = attack.batch * attack.student_steps
    compare(
        attack.step,
        plain(deployed.target, batch),
        what="Dual Student, one iteration (ratio to 256 images)",
        images=queries,
        classes=10,
    )
