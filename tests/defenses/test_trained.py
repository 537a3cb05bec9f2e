"""Networks that are kept: found again by what determines them, by nothing less, and never changing a result."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msbench.benchmark.checks import tiny_images
from msbench.defenses.base import DefenseContext
from msbench.defenses.mad import MAD
from msbench.defenses.topk import TopK
from msbench.defenses.trained import trained, trained_dir
from torch import nn

Make = Callable[..., DefenseContext]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSBENCH_HOME", str(tmp_path / "home"))


class Fit:
    """Training that draws from the global random state, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, network: nn.Module) -> None:
        self.count += 1
        network.train()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.rand(parameter.shape))


def network(context: DefenseContext) -> nn.Module:
    return context.new_surrogate(7)


def test_trains_once_and_returns_the_same_frozen_network(context: Make) -> None:
    fit = Fit()
    first, second = (trained(network(context()), fit, defense=MAD(), context=context()) for _ in range(2))
    assert fit.count == 1
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    for each in (first, second):
        assert not each.training
        assert not any(parameter.requires_grad for parameter in each.parameters())


def test_what_rounds_otherwise_is_trained_anew(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Fit()
    trained(network(context()), fit, defense=MAD(), context=context())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    trained(network(context()), fit, defense=MAD(), context=context())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    trained(network(context()), fit, defense=MAD(), context=context())
    assert fit.count == 3


def other_target(context: DefenseContext) -> DefenseContext:
    changed = context.target()
    with torch.no_grad():
        next(changed.parameters())[0] += 1e-3
    return replace(context, target=lambda: changed)


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given | {"defense": MAD(epsilon=0.5)},
        lambda given: given | {"defense": TopK()},
        lambda given: given | {"context": replace(given["context"], seed=1)},
        lambda given: given | {"context": replace(given["context"], image_shape=(1, 4, 9))},
        lambda given: given | {"context": replace(given["context"], recipe=replace(given["context"].recipe, lr=0.5))},
        lambda given: given | {"context": other_target(given["context"])},
        lambda given: given | {"network": given["context"].new_surrogate(8)},
        lambda given: given | {"data": [tiny_images(2, 10), tiny_images(5, 10)]},
        lambda given: given | {"data": [tiny_images(2, 10)]},
        lambda given: given | {"data": [tiny_images(2, 10), tiny_images(3, 9)]},
        lambda given: given | {"part": "second"},
    ],
)
def test_whatever_determines_the_weights_is_told_apart(change: Callable[..., Any], context: Make) -> None:
    fit = Fit()

    def given() -> dict[str, Any]:
        return {
            "network": network(context()),
            "defense": MAD(),
            "context": context(),
            "data": [tiny_images(2, 10), tiny_images(3, 10)],
        }

    for arguments in (given(), change(given()), given(), change(given())):
        trained(arguments.pop("network"), fit, **arguments)
    assert fit.count == 2


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-8], lambda content: content[:-1] + b"\xff", lambda _: b""]
)
def test_a_damaged_file_is_not_trusted(damage: Callable[[bytes], bytes], context: Make) -> None:
    fit = Fit()
    first = trained(network(context()), fit, defense=MAD(), context=context())
    [path] = trained_dir().glob("*/*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    again = trained(network(context()), fit, defense=MAD(), context=context())
    assert fit.count == 2
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    trained(network(context()), fit, defense=MAD(), context=context())
    assert fit.count == 2


def test_the_global_random_state_neither_matters_nor_changes(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for seed in (1, 2):
        monkeypatch.setenv("MSBENCH_HOME", str(trained_dir().parent / str(seed)))
        for _ in range(2):  # trained, then kept
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            result = trained(network(context()), Fit(), defense=MAD(), context=context())
            assert torch.equal(before, torch.get_rng_state())
            weights.append(torch.cat([parameter.flatten() for parameter in result.parameters()]))
    assert all(torch.equal(weights[0], each) for each in weights)
