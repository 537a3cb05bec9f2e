"""Precision: what computes in what, and that nothing of it stays behind."""

import os
import subprocess
import sys

import pytest
import torch
from msbench.attacks.learning import build_optimizer, descend
from msbench.benchmark.environment import arithmetic
from msbench.benchmark.numerics import Compilation, compiles, numerics
from torch import nn

CPU = torch.device("cpu")


def settings() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    flags = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)
    return (*flags, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"))


@pytest.mark.parametrize(
    ("precision", "expected", "dtype"),
    [
        ("fp32", (False, True, False, "highest", False), torch.float32),
        ("bf16", (True, False, True, "high", True), torch.bfloat16),
    ],
)
def test_what_holds_within_and_is_put_back(precision: str, expected: tuple[object, ...], dtype: torch.dtype) -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), numerics(precision, CPU):
        assert settings() == expected
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
        raise ZeroDivisionError
    assert settings() == before


def test_fp32_within_bf16_and_the_other_way_round() -> None:
    with numerics("fp32", CPU):
        outer = settings()
        with numerics("bf16", CPU):
            pass
        assert settings() == outer


def test_several_steps_in_bf16_each_see_the_weights_of_the_last() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 4.0)
    optimizer = build_optimizer("sgd", network.parameters(), lr=0.125, weight_decay=0.0)
    outputs = []
    with numerics("bf16", CPU):
        for _ in range(3):
            output = network(torch.ones(1, 1))
            outputs.append(float(output.detach()))
            descend(optimizer, output.sum())
    # The gradient is 1; with momentum 0.9 the weight falls by 0.125, then by 0.2375.
    assert outputs == pytest.approx([4.0, 3.875, 3.6375], abs=0.02)


@pytest.mark.parametrize(
    ("asked", "device", "budget", "expected"),
    [
        ("auto", "cpu", 20_000_000, False),
        ("auto", "cuda", 60_000, False),
        ("auto", "cuda", 2_000_000, True),
        ("on", "cpu", 1, True),
        ("off", "cuda", 20_000_000, False),
    ],
)
def test_what_is_compiled(asked: Compilation, device: str, budget: int, expected: bool) -> None:
    assert compiles(asked, torch.device(device), budget) is expected


def test_the_digest_of_rounding_repeats_and_draws_from_no_global_stream() -> None:
    before = torch.random.get_rng_state()
    with torch.no_grad():
        assert arithmetic.__wrapped__() == arithmetic.__wrapped__() == arithmetic()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(arithmetic()) == 12


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this processor knows one way only")
def test_other_instructions_of_the_processor_round_otherwise() -> None:
    code = "from msbench.benchmark.environment import arithmetic; print(arithmetic())"
    settings = os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) == 12
    assert done.stdout.strip() != arithmetic()
