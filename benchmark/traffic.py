"""What is noted of the attack's queries on their way through the deployed path.

Sums, histograms and a sample, on the device: nothing grows with the budget.
"""

import hashlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..defenses.base import Verdict
from ..defenses.deployment import Deployment
from ..leaderboard.record import Detection, Distance
from ..targets.persistence import restore, snapshot

BINS = 2000
"""Resolution of the 95th percentile of L1 distances: a thousandth."""
KEPT = 256
"""The last queried images that are kept for measuring their distance from the data."""
SAMPLED = 128
"""At most so many queries, and at least half as many, are kept with their answers."""


def account_name(run_id: str, who: str) -> str:
    """The name that a customer goes by in one run: sixteen hexadecimal digits, the same when the run is continued.

    It does not tell who it is: a defense that knew the attack's could spare everybody else.
    """
    return hashlib.sha256(f"{run_id} {who}".encode()).hexdigest()[:16]


class Sample(NamedTuple):
    """Some of the attack's queries, at equal distances over all of them, and what they were answered."""

    images: Tensor
    """(N, C, H, W)."""
    clean: Tensor
    """The undefended target's answers (N, K)."""
    released: Tensor
    """The defense's (N, K)."""


class Traffic:
    """Answers the attack's queries through a deployment and keeps statistics of them.

    Args:
        deployment: target and defense as attackers and users meet them.
        account: the name that the attack asks under.
    """

    def __init__(self, deployment: Deployment, account: str) -> None:
        self.deployment = deployment
        self.account = account
        target = deployment.target
        device = target.mean.device
        self.asked = 0
        self.largest = 0
        self.labels = torch.zeros(target.num_classes, dtype=torch.long, device=device)
        self.l1_bins = torch.zeros(BINS + 1, dtype=torch.long, device=device)
        self.l1_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.l1_max = torch.zeros((), device=device)
        self.last = torch.zeros(0, *target.image_shape, device=device)
        self.stride = 1
        self.kept = [self.last, *(torch.zeros(0, target.num_classes, device=device) for _ in range(2))]
        self.judged = False
        self.flagged = torch.zeros((), dtype=torch.long, device=device)
        self.refused = torch.zeros((), dtype=torch.long, device=device)
        self.first_flagged = torch.zeros((), dtype=torch.long, device=device)

    def answer(self, images: Tensor) -> Tensor:
        """Released probabilities (N, K) for the attack."""
        clean, released = self.deployment.answer(images, self.account)
        self._note(self.deployment.verdict())
        self._keep(images, clean, released)
        self.asked += len(images)
        self.largest = max(self.largest, len(images))
        distance = (released - clean).abs().sum(dim=1)
        _count(self.labels, clean.argmax(dim=1))
        _count(self.l1_bins, (distance * (BINS / 2)).long().clamp(0, BINS))
        self.l1_sum += distance.sum(dtype=torch.float64)
        self.l1_max = torch.maximum(self.l1_max, distance.max())
        self.last = torch.cat([self.last, images[-KEPT:]])[-KEPT:]
        return released

    def _keep(self, *batch: Tensor) -> None:
        """Every ``stride``-th query is sampled; where that makes too many, every second stays from then on."""
        first = -self.asked % self.stride
        if first >= len(batch[0]):
            return
        picked = (rows[first :: self.stride].float() for rows in batch)
        self.kept = [torch.cat(pair) for pair in zip(self.kept, picked, strict=True)]
        while len(self.kept[0]) > SAMPLED:
            self.kept = [rows[::2].clone() for rows in self.kept]
            self.stride *= 2

    def _note(self, verdict: Verdict | None) -> None:
        """Count what the defense flagged and refused of the batch that follows on those asked so far."""
        if verdict is None:
            return
        self.judged = True
        self.flagged += verdict.flagged.sum()
        self.refused += verdict.refused.sum()
        place = self.asked + 1 + verdict.flagged.long().argmax()
        is_first = verdict.flagged.any() & (self.first_flagged == 0)
        self.first_flagged = torch.where(is_first, place, self.first_flagged)

    @property
    def sample(self) -> Sample:
        """Some of the queries so far, and what they were answered."""
        return Sample(*self.kept)

    def detection(self) -> Detection | None:
        """What the defense made of the queries; None if it detects nothing."""
        if not self.judged:
            return None
        return Detection(
            flagged=int(self.flagged), refused=int(self.refused), first_flagged=int(self.first_flagged) or None
        )

    def label_histogram(self) -> list[int]:
        """How often the target predicts each class on the queries."""
        counts: list[int] = self.labels.tolist()
        return counts

    def label_entropy(self) -> float:
        """Entropy of that histogram in nats."""
        total = max(int(self.labels.sum()), 1)
        shares = [count / total for count in self.label_histogram() if count]
        return max(0.0, -sum(share * math.log(share) for share in shares))

    def l1(self) -> Distance | None:
        """Distance of released from clean answers over all queries; None without any."""
        count = int(self.l1_bins.sum())
        if count == 0:
            return None
        cumulative = self.l1_bins.cumsum(0)
        reached = int((cumulative < math.ceil(0.95 * count)).sum())
        return Distance(
            mean=float(self.l1_sum) / count,
            p95=min((reached + 0.5) * 2 / BINS, float(self.l1_max)) if reached else 0.0,
            max=float(self.l1_max),
        )

    def state_dict(self) -> dict[str, Any]:
        """All statistics."""
        return snapshot(self, skip=("deployment", "account"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        restore(self, state)


def _count(histogram: Tensor, values: Tensor) -> None:
    """Add one at each value. (``bincount`` would make an accelerator wait.)"""
    histogram.scatter_add_(0, values, torch.ones_like(values))
