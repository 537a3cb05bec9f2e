"""PRADA: an account's queries are an attack's if their distances from each other are not normally distributed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..components import Paper, param
from .base import DefenseContext, Traits
from .detection import FORGETS, Account, Detector

_CHUNK = 256
"""Queries whose distances from each other are computed at once."""
_IMAGES = 10_000
"""Images kept of an account in all, shared out evenly among the classes: 31 MB of 28x28 pixels."""


@dataclass(kw_only=True)
class PRADA(Detector):
    """Test whether the distances of an account's queries from its earlier ones look normal, by Shapiro and Wilk's W.

    For each class that the target predicts, a growing set holds queries that are far from each other: the first,
    and each one whose L2 distance d from the nearest in the set exceeds the class's threshold T. Accepted distances
    raise it, T = max(T, mean - deviation) over them, the first query's 0 included. All nearest distances d, accepted
    or not, are the sample: every tenth query they are pooled over the classes, those three deviations or more from
    the mean are dropped, and if more than 100 remain, the account is flagged from there on while W < delta, until a
    later test finds otherwise. The suspicion is 1 - W.

    Juuti et al. (EuroS&P 2019). As in their released code, a class is pooled from ten distances on, tests are made
    at every tenth query, and delta is 0.9; the paper chooses delta for each data set. Deviations, which bound what
    is kept: a class's set takes no more than ``members`` images, from 51 classes on fewer, so that an account's are
    10,000 in all (31 MB of 28x28 pixels; at most 64 accounts are remembered, which makes 2 GB), and the newest
    ``window`` distances are tested.
    Their code answers a flagged query with the three largest probabilities shuffled at random; here that is the
    action ``poison``, which makes them change places in a ring.
    """

    delta: float = param(0.9, "the W under which an account is flagged", gt=0, lt=1)
    members: int = param(200, "images kept for each class of an account, at most", ge=1)
    window: int = param(5000, "distances kept for an account, which are tested", ge=101, le=5000)

    paper: ClassVar[Paper | None] = Paper(
        key="juuti2019prada",
        title="PRADA: Protecting Against DNN Model Stealing Attacks",
        authors="Juuti, Mika and Szyller, Sebastian and Marchal, Samuel and Asokan, N.",
        year=2019,
        venue="IEEE European Symposium on Security and Privacy",
        arxiv="1805.02628",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stateful=True,
        needs=("account",),
        stage="detection",
        knob="delta",
        sweep=(0.8, 0.85, 0.9, 0.95, 0.98),
        preserves="Answers to accounts whose queries are spread like natural images.",
        weakness="Queries whose distances look normal pass, even an attack's; so does a budget split over accounts. "
        "Benign queries between them may hide an attack, or give it away. "
        f"{FORGETS}, and begins anew.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Fit nothing: the limit is the paper's."""
        super().prepare(context)
        self.limit = 1 - self.delta
        self.num_classes = context.num_classes
        self.pixels = context.image_shape[0] * context.image_shape[1] * context.image_shape[2]
        self.device = str(context.device)

    @property
    def room(self) -> int:
        """The images that a class's set takes."""
        return min(self.members, max(1, _IMAGES // self.num_classes))

    def newcomer(self) -> Account:
        """Empty sets; the thresholds are 0."""
        zeros = torch.zeros(self.num_classes, dtype=torch.float64, device=self.device)
        return {
            "set": torch.zeros(0, self.pixels, device=self.device),
            "set_classes": torch.zeros(0, dtype=torch.long, device=self.device),
            # Of each class: how many images are in its set, and of their accepted distances the sums, and T.
            "count": zeros,
            "sum": zeros.clone(),
            "squares": zeros.clone(),
            "threshold": zeros.clone(),
            "distances": torch.zeros(0, dtype=torch.float64),
            "distance_classes": torch.zeros(0, dtype=torch.long),
            "asked": 0,
            "suspicion": 0.0,
        }

    def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
        """1 - W at the latest test (N,); 0 before there is one."""
        pieces = zip(
            torch.split(images.float().flatten(1), _CHUNK), torch.split(probs.argmax(dim=1), _CHUNK), strict=True
        )
        return torch.cat([self._chunk(pixels, classes, account) for pixels, classes in pieces])

    def _chunk(self, pixels: Tensor, classes: Tensor, account: Account) -> Tensor:
        nearest = self._grow(pixels, classes, account)
        return self._test(nearest.cpu(), classes.cpu(), account).to(pixels.device)

    def _grow(self, pixels: Tensor, classes: Tensor, account: Account) -> Tensor:
        """Add queries to the sets, in order; returns their nearest distances (N,), NaN for the first of a class.

        Whether one is accepted depends on which of those before it were, so that this is sequential by definition. It
        is decided for all at once, and again under what was decided, until nothing changes: each pass settles at
        least one more query for good, and in practice many.
        """
        before = _nearest(pixels, classes, account["set"], account["set_classes"])
        between = torch.cdist(pixels, pixels, compute_mode="donot_use_mm_for_euclid_dist").double()
        earlier = (classes[:, None] == classes).tril(-1)
        present, own = torch.unique(classes, return_inverse=True)
        accepted = torch.zeros_like(classes, dtype=torch.bool)
        while True:
            found = torch.minimum(before, between.masked_fill(~(earlier & accepted), torch.inf).amin(dim=1))
            ledger = _Ledger(account, present, own, found, accepted)
            accept = ledger.first | ((found > ledger.threshold) & (ledger.count < self.room))
            if torch.equal(accept, accepted):
                break
            accepted = accept
        account |= ledger.closed(account, present)
        account["set"] = torch.cat([account["set"], pixels[accepted]])
        account["set_classes"] = torch.cat([account["set_classes"], classes[accepted]])
        return torch.where(ledger.first, torch.nan, found)

    def _test(self, nearest: Tensor, classes: Tensor, account: Account) -> Tensor:
        """Suspicions (N,) after each query, given the nearest distances (N,) on the CPU."""
        kept = ~nearest.isnan()
        distances = torch.cat([account["distances"].cpu(), nearest[kept]])
        of_classes = torch.cat([account["distance_classes"].cpu(), classes[kept]])
        known_after = len(account["distances"]) + kept.long().cumsum(0)
        suspicions = torch.full((len(nearest),), account["suspicion"], dtype=torch.float64)
        first_test = -(account["asked"] + 1) % 10
        # One at a time, as scipy takes them, each of a sample of its own length: of 256 queries there are 26 at most.
        for place in range(first_test, len(nearest), 10):
            known = int(known_after[place])
            sample = slice(max(0, known - self.window), known)
            statistic = shapiro_wilk(distances[sample].numpy(), of_classes[sample].numpy())
            if statistic is not None:
                suspicions[place:] = 1 - statistic
        account["distances"] = distances[-self.window :].clone()
        account["distance_classes"] = of_classes[-self.window :].clone()
        account["asked"] += len(nearest)
        account["suspicion"] = float(suspicions[-1])
        return suspicions


def shapiro_wilk(distances: NDArray[np.float64], classes: NDArray[np.int64]) -> float | None:
    """W of the distances (M,) of classes with ten or more, outliers dropped; None unless more than 100 remain."""
    from scipy.stats import shapiro

    pooled = distances[np.bincount(classes)[classes] >= 10] if len(classes) else distances
    if len(pooled) == 0:
        return None
    usual = pooled[np.abs(pooled - pooled.mean()) < 3 * pooled.std()]
    if len(usual) <= 100 or np.ptp(usual) == 0:  # of equal numbers there is no W
        return None
    return float(shapiro(usual).statistic)


def _nearest(pixels: Tensor, classes: Tensor, members: Tensor, member_classes: Tensor) -> Tensor:
    """L2 distances (N,) of queries (N, D) from the nearest member (M, D) of the same class, or infinity; float64."""
    if len(members) == 0:
        return torch.full((len(pixels),), torch.inf, dtype=torch.float64, device=pixels.device)
    rough = torch.cdist(pixels, members).masked_fill(classes[:, None] != member_classes, torch.inf)
    found, place = rough.min(dim=1)
    # Measured again: cdist's matrix products leave a repeated image at a distance of rounding errors.
    exact = (pixels - members[place]).double().norm(dim=1)
    return torch.where(found.isinf(), torch.inf, exact)


class _Ledger:
    """What is known of the classes before each of N queries, if those in ``accepted`` joined the sets.

    Args:
        account: what was kept of who asks.
        present: the classes (C,) that the queries are of.
        own: the place (N,) of each query's class among them.
        found: distances (N,) from the nearest of the set.
        accepted: bool (N,).
    """

    def __init__(self, account: Account, present: Tensor, own: Tensor, found: Tensor, accepted: Tensor) -> None:
        ours = own == torch.arange(len(present), device=own.device)[:, None]
        place = torch.arange(len(own), device=own.device)

        def running(name: str, gains: Tensor) -> Tensor:
            # The same sums in the same order as query by query: what others add to a class is zero.
            return torch.cat([account[name][present, None], torch.where(ours, gains, 0.0)], dim=1).cumsum(dim=1)

        count = running("count", accepted.double())
        self.count = count[own, place]
        self.first = self.count == 0
        steps = torch.where(accepted & ~self.first, found, 0.0)
        total, squares = running("sum", steps), running("squares", steps.square())
        mean = total / count
        spread = (squares / count - mean.square()).clamp_min(0).sqrt()
        limits = torch.where(count > 0, mean - spread, 0.0)
        limits[:, 0] = account["threshold"][present]
        highest = limits.cummax(dim=1).values
        self.threshold = highest[own, place]
        self._last = {"count": count, "sum": total, "squares": squares, "threshold": highest}

    def closed(self, account: Account, present: Tensor) -> Account:
        """The account's numbers of all classes after the last query."""
        return {name: account[name].index_copy(0, present, after[:, -1]) for name, after in self._last.items()}
