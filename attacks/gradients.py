"""Gradients without derivatives: forward differences along random directions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.backends import cudnn


def forward_difference(
    objective: Callable[[Tensor], Tensor],
    points: Tensor,
    *,
    directions: int,
    step: float,
    generator: torch.Generator,
) -> Tensor:
    """Estimate the gradient of a per-image objective at each point.

    For m directions d_j, uniform on the unit sphere, the estimate is
    ``dim / m * sum_j (f(u + step * d_j) - f(u)) / step * d_j``. It is unbiased for a linear objective; its cosine
    with the true gradient is about sqrt(2 / (pi * dim)) at m = 1. The objective, victim included, computes in full
    float32: a step of 1e-3 moves a pixel by less than what bfloat16 and TF32 tell apart.

    Args:
        objective: maps points ((m + 1) * N, C, H, W) to values ((m + 1) * N,); called once, without gradients.
        points: (N, C, H, W).
        directions: m.
        step: length of a step, in the units of ``points``.

    Returns:
        (N, C, H, W).
    """
    count, dim = len(points), points[0].numel()
    shape = (directions, *points.shape)
    raw = torch.randn(shape, generator=generator, device=points.device)
    unit = raw / raw.flatten(2).norm(dim=2).clamp_min(1e-12).view(directions, count, 1, 1, 1)
    everywhere = torch.cat([points.unsqueeze(0), points + step * unit]).flatten(0, 1)
    with torch.no_grad(), full_float32(points.device):
        values = objective(everywhere).view(directions + 1, count)
    slopes = (values[1:] - values[0]) / step
    estimate: Tensor = dim * (slopes.view(directions, count, 1, 1, 1) * unit).mean(dim=0)
    return estimate


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 within this scope, whatever is allowed around it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    settings = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    try:
        with cudnn.flags(enabled=True, allow_tf32=False, **settings), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
