"""The measurements of the protocol, as pure functions of predictions."""

import math

import torch
from torch import Tensor, nn

from ..leaderboard.curve import area_under_curve as area_under_curve  # measured here, and checked without torch
from ..leaderboard.curve import queries_to as queries_to
from ..leaderboard.record import Distance
from ..targets.datasets.base import Images

ECE_BINS = 15


@torch.no_grad()
def predict(model: nn.Module, images: Images, batch: int = 1024) -> Tensor:
    """A model's probabilities (N, K) in float32 on all images."""
    return torch.cat([model(pixels).float().softmax(dim=1) for pixels, _ in images.batches(batch)])


def all_labels(images: Images, batch: int = 1024) -> Tensor:
    """The labels (N,) of all images."""
    return torch.cat([labels for _, labels in images.batches(batch)])


def share(hits: Tensor) -> float:
    """Share of true entries."""
    return int(hits.sum()) / max(len(hits), 1)


def same_top(a: Tensor, b: Tensor) -> float:
    """Share of rows of two (N, K) tensors whose top class is the same."""
    return share(a.argmax(dim=1) == b.argmax(dim=1))


def distance(released: Tensor, clean: Tensor) -> Distance:
    """Mean, 95th percentile and maximum of the L1 distances of rows."""
    l1 = (released.double() - clean.double()).abs().sum(dim=1)
    rank = min(len(l1), max(1, math.ceil(0.95 * len(l1))))
    return Distance(mean=float(l1.mean()), p95=float(l1.kthvalue(rank).values), max=float(l1.max()))


def kl_divergence(reference: Tensor, other: Tensor, floor: float = 1e-12) -> float:
    """Mean KL(reference || other) over rows, in nats, both floored."""
    p, q = reference.double().clamp_min(floor), other.double().clamp_min(floor)
    return max(float((p * (p.log() - q.log())).sum(dim=1).mean()), 0.0)  # in this order NaN stays NaN


def negative_log_likelihood(probs: Tensor, labels: Tensor, floor: float = 1e-12) -> float:
    """Mean negative log-probability of the labels, in nats, floored."""
    chosen = probs.double().gather(1, labels.unsqueeze(1)).clamp(floor, 1)
    return float(-chosen.log().mean())


def calibration_error(probs: Tensor, right: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over equal bins (Guo et al., ICML 2017).

    Args:
        probs: (N, K); the largest is an answer's confidence.
        right: bool (N,), whether each answer was right.
    """
    confidence = probs.double().amax(dim=1)
    hit = right.double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    zeros = torch.zeros(bins, dtype=torch.float64, device=probs.device)
    gap = zeros.index_add(0, index, hit - confidence)
    return float(gap.abs().sum() / len(probs))


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a score from ``inside`` exceeds one from ``outside``; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(torch.cat([inside, outside]).double().cpu().numpy())
    wins = float(ranks[: len(inside)].sum()) - len(inside) * (len(inside) + 1) / 2
    return wins / (len(inside) * len(outside))


def nearest_distance(queries: Tensor, data: Tensor) -> float:
    """Mean over queries of the root-mean-square pixel distance to the nearest data image."""
    a, b = queries.flatten(1), data.flatten(1)
    nearest = b[torch.cdist(a, b).argmin(dim=1)]
    # Measured again: cdist's matrix products leave a copy of a data image at a distance of rounding errors.
    return float((a - nearest).norm(dim=1).mean()) / math.sqrt(a.shape[1])


def milestones(budget: int, count: int = 10) -> list[int]:
    """Where the clone is measured: ``count`` query numbers up to the budget, each half of the next."""
    return sorted({max(1, math.ceil(budget / 2**i)) for i in range(count)})
