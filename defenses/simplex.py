"""Geometry of the probability simplex."""

import torch
from torch import Tensor


def project_to_simplex(v: Tensor) -> Tensor:
    """The probability vectors closest to the rows of ``v`` in Euclidean distance.

    Sort, cumulate, threshold: O(K log K) for each row and exact up to rounding (Duchi, Shalev-Shwartz, Singer
    and Chandra, "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008).

    Args:
        v: (N, K), any finite floating-point values.

    Returns:
        (N, K) of the same dtype: non-negative, each row summing to one.
    """
    # The projection ignores a constant added to a row; with the maximum at zero nothing large can cancel.
    v = v - v.amax(dim=1, keepdim=True)
    descending = v.sort(dim=1, descending=True).values
    excess = descending.cumsum(dim=1) - 1
    count = torch.arange(1, v.shape[1] + 1, device=v.device)
    support = (descending * count > excess).sum(dim=1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (v - threshold).clamp_min(0)
