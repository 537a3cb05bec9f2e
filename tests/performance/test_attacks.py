"""How fast attacks are: queries a second, beside a plain implementation of the same attack in the same process.

``pytest tests/performance/test_attacks.py --benchmark-only -n 0 -m 'gpu or not gpu'`` prints the table; the rows of
CIFAR's size need a GPU. Useful operations are those of the plain implementation; the share is that of the device's
peak, measured by a large matrix product in the precision that the attack computes in. On a GPU the attack computes in
bf16, and the yardstick in float32 with TF32; "busy" is the share of ten iterations' time in which the device computed,
and "whole budget" how long a run would take: 60,000 queries, or, for the last rows, the Dual Student paper's 2 million
(MNIST) and 20 million (CIFAR).
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from msbench.attacks.base import AttackContext
from msbench.benchmark.numerics import numerics
from msbench.benchmark.spec import frozen_for
from msbench.benchmark.traffic import Traffic
from msbench.components import load_class
from msbench.defenses.deployment import Deployment
from msbench.defenses.none import NoDefense
from msbench.targets.architectures import build_clone, build_network
from msbench.targets.blackbox import BlackBox
from msbench.targets.target import Target
from msbench.targets.zoo import load_target
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from yardsticks import PlainDFME, PlainDualStudent

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = {"dualstudent": PlainDualStudent, "dfme": PlainDFME}


@dataclass(frozen=True)
class Cell:
    """Sizes and architectures of one setting."""

    shape: tuple[int, int, int]
    data: str
    target: str = "lenet5"
    params: dict[str, Any] = field(default_factory=dict)
    """What differs from the frozen hyperparameters."""
    queries: int = 60_000
    """The budget that a run of this size has."""
    rounds: int = 30


CELLS = {
    "digits": Cell((1, 8, 8), "digits"),
    "mnist": Cell((1, 28, 28), "mnist"),
    "mnist-256": Cell((1, 28, 28), "mnist", params={"batch": 256}, queries=2_000_000),
    "cifar10": Cell((3, 32, 32), "cifar10", target="resnet34_8x", queries=20_000_000),
}


class Pair:
    """An attack and its yardstick, each with a black box of its own, from the same seed."""

    def __init__(
        self,
        name: str,
        data: str,
        *,
        device: torch.device,
        precision: str = "fp32",
        compiled: bool = False,
        seed: int = 0,
        weights: dict[str, torch.Tensor] | None = None,
        **more: Any,
    ) -> None:
        self.cell, self.weights = CELLS[data], weights
        frozen = frozen_for(self.cell.data, name)
        self.precision, self.device = precision, device
        params = frozen.get("params", {}) | {"schedule": "constant"} | self.cell.params | more
        self.attack: Any = load_class("attack", name).from_params(params)
        self.context = AttackContext(
            device=device,
            seed=seed,
            precision=torch.bfloat16 if precision == "bf16" else torch.float32,
            compiled=compiled,
            build_clone=lambda seed: build_clone(
                frozen["clone"], num_classes=10, image_shape=self.cell.shape, seed=seed
            ),
        )
        self.attack.setup(self.box(torch.channels_last), self.context)
        self.plain = PLAIN[name](self.attack, self.box(torch.contiguous_format), self.context)

    def box(self, layout: torch.memory_format) -> BlackBox:
        """An undefended target, asked as the runner asks it."""
        shape = self.cell.shape
        network = build_network(self.cell.target, num_classes=10, image_shape=shape, seed=0)
        unit = (0.5,) * shape[0]
        target = Target(network, mean=unit, std=unit, num_classes=10, image_shape=shape).to(self.device)
        if self.weights is not None:
            target.load_state_dict(self.weights)
        target = target.to(memory_format=layout).eval().requires_grad_(False)
        answer = Traffic(Deployment(target, NoDefense()), "anybody").answer
        return BlackBox(answer, budget=10**12, num_classes=10, image_shape=shape)

    def ours(self) -> int:
        """One iteration of the attack; returns how many queries it spent."""
        before = self.attack.victim.spent
        with numerics(self.precision, self.device):
            self.attack.step()
        return int(self.attack.victim.spent - before)

    def yardstick(self) -> None:
        """One iteration of the plain implementation, in float32 (TF32 on a GPU)."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            self.plain.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_yardstick_is_the_same_attack(name: str, optimizer: str) -> None:
    """From the same weights and numbers, two iterations move both attacks' students alike.

    Rounding keeps them from moving the same: Adam turns a gradient that is hardly there into a full step.
    """
    sizes = {"batch": 16, "width": 8, "latent": 8, "optimizer": optimizer, "lr_student": 1e-3}
    pair = Pair(name, "digits", device=torch.device("cpu"), **sizes)
    starts = [copy.deepcopy(student) for student in pair.plain.students]
    for _ in range(2):
        assert pair.ours() == (5 + 2 * (name == "dfme")) * 16
        pair.yardstick()
    for index, (start, student) in enumerate(zip(starts, pair.plain.students, strict=True)):
        ours = pair.attack.pupils.weights(index)
        moves = [
            torch.cat([(weights[key] - value).flatten() for key, value in start.named_parameters()]).detach()
            for weights in (ours, dict(student.named_parameters()))
        ]
        assert float(F.cosine_similarity(*moves, dim=0)) > 0.99
        assert float(moves[0].norm() / moves[1].norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "mnist"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_yardstick_steals_as_much(name: str, data: str, real: Path) -> None:
    """At 60,000 queries both clones agree with the target alike, within the noise of three seeds."""
    loaded = load_target(f"{data}/lenet5", data_dir=real)
    images = next(loaded.dataset.load("test", data_dir=real, download=False, device="cpu").batches(2000))[0]
    truth = loaded.target(images).argmax(dim=1)
    agreement: dict[str, list[float]] = {"ours": [], "plain": []}
    for seed in range(3):
        pair = Pair(name, data, device=torch.device("cpu"), seed=seed, weights=loaded.target.state_dict())
        while pair.attack.victim.spent < 60_000:
            pair.ours()
            pair.yardstick()
        for who, clone in (("ours", pair.attack.pupils.copy(0)), ("plain", pair.plain.students[0].eval())):
            agreement[who].append(float((clone(images).argmax(dim=1) == truth).float().mean()))
    print(f"{name} {data}: {agreement}")
    ours, plain = (statistics.mean(values) for values in agreement.values())
    spread = statistics.stdev(agreement["ours"]) + statistics.stdev(agreement["plain"])
    assert min(ours, plain) > 0.3
    assert abs(ours - plain) < max(2 * spread, 0.02)


SPEEDS = [
    *[(name, data, False) for data in ("digits", "mnist") for name in PLAIN],
    *[
        pytest.param(name, data, compiled, marks=pytest.mark.gpu)
        for data, names in (("mnist-256", ["dualstudent"]), ("cifar10", PLAIN))
        for name in names
        for compiled in (False, True)
    ],
]


@pytest.mark.parametrize(("name", "data", "compiled"), SPEEDS)
def test_speed(benchmark: BenchmarkFixture, speeds: Any, name: str, data: str, compiled: bool) -> None:
    precision = "bf16" if DEVICE.type == "cuda" else "fp32"
    pair = Pair(name, data, device=DEVICE, precision=precision, compiled=compiled)
    queries = pair.ours()
    with FlopCounterMode(display=False) as counter:
        pair.yardstick()
    flops = counter.get_total_flops()
    for _ in range(5):  # the first iterations build what later ones reuse, and are not yet recorded
        pair.ours(), pair.yardstick()
    plain: list[float] = []
    benchmark.pedantic(
        lambda: timed(pair.ours), setup=lambda: plain.append(timed(pair.yardstick)), rounds=CELLS[data].rounds
    )
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds, other = benchmark.stats.stats.median, statistics.median(plain)
    speeds.append(
        {
            "attack": name,
            "size": data,
            "compiled": "yes" if compiled else "no",
            "queries/s": f"{queries / seconds:,.0f}",
            "plain": f"{queries / other:,.0f}",
            "ratio": f"{other / seconds:.2f}",
            "MFLOP/query": f"{flops / queries / 1e6:.1f}",
            "share of peak": f"{flops / seconds / peak(precision):.0%}",
            "memory, MB": memory(pair),
            "busy": busy(pair),
            "whole budget, s": f"{CELLS[data].queries / (queries / seconds):,.0f}",
        }
    )
    benchmark.extra_info |= speeds[-1]


def timed(call: Callable[[], object]) -> float:
    """Seconds until the device is done with a call."""
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def memory(pair: Pair) -> str:
    """The most memory that an iteration of the attack takes on a GPU, weights and optimizers of both included."""
    if DEVICE.type == "cpu":
        return "-"
    torch.cuda.reset_peak_memory_stats()
    pair.ours()
    return f"{torch.cuda.max_memory_allocated() / 1e6:,.0f}"


def busy(pair: Pair) -> str:
    """The share of ten iterations' time in which a GPU computed: what is missing are gaps."""
    if DEVICE.type == "cpu":
        return "-"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        seconds = timed(lambda: [pair.ours() for _ in range(10)])
    computed, until = 0.0, -math.inf
    spans = ((event.time_range.start, event.time_range.end) for event in trace.events() or ())
    for start, end in sorted(spans):  # of events that overlap, each moment counts once
        computed += max(0.0, end - max(start, until))
        until = max(until, end)
    return f"{computed / 1e6 / seconds:.0%}"


@cache
def peak(precision: str) -> float:
    """Operations a second in a large matrix product: the best of ten."""
    size = 8192 if DEVICE.type == "cuda" else 2048
    matrix = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * size**3 / min(timed(lambda: matrix @ matrix) for _ in range(10))
