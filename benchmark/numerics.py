"""What a run computes in: the one place for precision, determinism and compilation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Compilation = Literal["auto", "off", "on"]

LONG = 1_000_000
"""Queries of a run from which minutes of compiling are expected to pay on a GPU."""


def compiles(asked: Compilation, device: torch.device, budget: int) -> bool:
    """Whether an attack's networks are compiled, and its steps recorded as CUDA graphs on a GPU.

    ``auto`` does so in long runs on a GPU; on a CPU there is little to gain.
    """
    return asked == "on" or (asked == "auto" and device.type == "cuda" and budget >= LONG)


@contextmanager
def numerics(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in ``fp32`` or ``bf16`` within this scope.

    ``fp32`` is float32 throughout, TF32 switched off, with deterministic convolutions. ``bf16`` is for speed: the
    attack's networks compute under autocast, what stays in float32 (the service, above all) may use TF32, and
    convolutions are chosen by trial. Differences of zeroth-order attacks are excepted
    (`attacks.gradients.full_float32`). Logarithms and L1 targets are in float32 either way.
    """
    fast = precision == "bf16"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if fast else "highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=fast, deterministic=not fast, allow_tf32=fast),
            # Without its cache, which would go on using weights as they were before an optimizer's step.
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast, cache_enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
