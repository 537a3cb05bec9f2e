"""Nothing within an iteration reads a tensor's value on the host, where an accelerator would have to finish first."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msbench.attacks.base import AttackContext
from msbench.benchmark.checks import IMAGE_SHAPE, tiny_network
from msbench.benchmark.traffic import Traffic
from msbench.components import load
from msbench.defenses.base import load_defense
from msbench.defenses.deployment import Deployment
from msbench.targets.blackbox import BlackBox
from msbench.targets.bounds import Bounds
from msbench.targets.target import Target
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
}


class Waits(TorchDispatchMode):
    """Notes operations whose result depends on values, which a GPU can only answer after waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITING:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def note_as_on_an_accelerator(bounds: Bounds, values: torch.Tensor) -> None:
    low, high = torch.aminmax(values)
    bounds._seen = torch.stack([low, -high])


ATTACKS = ["dualstudent", "dualstudent:optimizer=adam", "dfme", "disguide", "random_noise"]
GROWING = ["dualstudent:classes=discovered", "disguide:classes=discovered,optimizer=adam"]


@pytest.mark.parametrize("attack", ATTACKS + GROWING)
@pytest.mark.parametrize("defense", ["none", "topk", "rounding+topk"])
def test_an_iteration_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, attack: str, defense: str) -> None:
    monkeypatch.setattr(Bounds, "note", note_as_on_an_accelerator)
    target = Target(tiny_network(0, 10), mean=(0.5,), std=(0.5,), num_classes=10, image_shape=IMAGE_SHAPE).eval()
    answer = Traffic(Deployment(target, load_defense(defense)), "anybody").answer
    built: Any = load("attack", f"{attack}{',' if ':' in attack else ':'}batch=8,schedule=constant")
    context = AttackContext(
        device=torch.device("cpu"),
        seed=0,
        precision=torch.float32,
        build_clone=lambda seed: tiny_network(seed, 10),
    )
    labels_only = attack in GROWING  # declared alone: on the CPU, making labels of answers would wait
    victim = BlackBox(answer, budget=10_000, num_classes=10, image_shape=IMAGE_SHAPE, labels_only=labels_only)
    built.setup(victim, context)
    with Waits() as waits:
        for _ in range(3):
            built.step()
    assert waits.seen == []


def test_inverting_a_linear_map_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounds, "note", note_as_on_an_accelerator)
    victim = BlackBox(lambda images: images.flatten(1), budget=30, num_classes=3, image_shape=(3, 1, 1))
    recovery: Any = load("recovery", "linear:answers=20")
    recovery.wrap(victim)
    recovery.prepare(SimpleNamespace(device=torch.device("cpu")))
    answers = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    with Waits() as waits:
        for _ in range(3):
            recovery.query(answers.view(10, 3, 1, 1))
    assert waits.seen == []


def test_waiting_is_seen() -> None:
    with Waits() as waits:
        float(torch.ones(2).sum())
        torch.ones(3).nonzero()
        torch.linalg.solve(torch.eye(2), torch.ones(2))
    assert waits.seen == ["_local_scalar_dense", "nonzero", "_linalg_check_errors"]
