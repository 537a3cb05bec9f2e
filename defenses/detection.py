"""What detectors have in common: a state for each account, a limit of suspicion, and what flagged queries get.

Each detector gives every query a degree of suspicion, computed from it and from what its account asked before; a
query above the limit is flagged. What accounts keep is bounded: each detector says how much one keeps, and no more
than `ACCOUNTS` are remembered. An account that comes back after so many others begins anew: who asks under that many
names is forgotten, and what limits this is how hard new accounts are to get.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..components import param
from ..targets.datasets.base import Images
from ..targets.persistence import snapshot
from .base import Defense, DefenseContext, Verdict

Action = Literal["none", "refuse", "poison"]
Account = dict[str, Any]
"""What is kept of one account: tensors and numbers, by name."""

ACCOUNTS = 64
"""The accounts that are remembered: those that asked last."""
FORGETS = f"At most {ACCOUNTS} accounts are remembered: who asks under {ACCOUNTS} others meanwhile is forgotten"
"""The weakness of whoever keeps something of accounts, but for what comes of it."""
HELD_OUT = 0.2
"""The share of the defender's images that no network of a detector is trained on, so that limits can be fitted."""
CONFUSED = 3
"""How many of the largest probabilities change places where an answer is poisoned."""


@dataclass(kw_only=True)
class Detector(Defense):
    """Base of defenses that flag queries. Write `suspicion`; set `limit` in `prepare`.

    A flagged query is refused, answered wrongly, or, with the action ``none``, only counted.
    """

    action: Action = param("refuse", "what a flagged query gets: none (its answer), refuse, or poison (a wrong one)")

    unit: ClassVar[Literal["query", "account"]] = "account"
    """What a suspicion is about: the query alone, or all that its account asked so far."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action == "none":
            self.declare(argmax_preserving=True, stateful=False, preserves="Everything: flags are only counted.")

    def prepare(self, context: DefenseContext) -> None:
        """Know no account yet. Subclasses fit `limit` after this."""
        self.limit = math.inf
        self.account: str | None = None
        self.accounts: dict[str, Account] = {}
        self.scores = torch.zeros(0, device=context.device)

    def newcomer(self) -> Account:
        """What is kept of an account that has not asked yet."""
        return {}

    @abstractmethod
    def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
        """How suspicious each query is (N,), the account's earlier ones and those before it in the batch considered.

        Args:
            probs: the served network's probabilities (N, K).
            images: the queries (N, C, H, W), in the order in which they came.
            account: what is kept of who asks; to be updated.
        """

    def attend(self, account: str | None) -> None:
        """Remember who asks next."""
        self.account = account

    @torch.no_grad()
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K), but for flagged queries."""
        self.scores = self.suspicion(probs, images, self._kept())
        if self.action == "none":
            return probs
        instead = torch.full_like(probs, 1 / probs.shape[1]) if self.action == "refuse" else confuse(probs)
        return torch.where(self._flagged()[:, None], instead, probs)

    def verdict(self) -> Verdict:
        """What was flagged in the last batch; all of it is refused, or none, as the action says."""
        flagged = self._flagged()
        return Verdict(flagged=flagged, refused=flagged if self.action == "refuse" else torch.zeros_like(flagged))

    def state_dict(self) -> dict[str, Any]:
        """What is kept of accounts, and what was fitted."""
        return snapshot(self, skip=("traits", "account", "scores"))

    def _flagged(self) -> Tensor:
        return self.scores > self.limit

    def _kept(self) -> Account:
        if self.account is None:
            return self.newcomer()
        kept = self.accounts.pop(self.account, None)
        self.accounts[self.account] = self.newcomer() if kept is None else kept
        while len(self.accounts) > ACCOUNTS:
            del self.accounts[next(iter(self.accounts))]
        return self.accounts[self.account]


def confuse(probs: Tensor) -> Tensor:
    """Answers (N, K) whose three largest probabilities (two, if there are no more) have changed places in a ring.

    The second class gets the largest, so that the top class is wrong wherever it was unique, and the vector holds
    the same numbers as before.
    """
    values, places = probs.topk(min(CONFUSED, probs.shape[1]), dim=1)
    return probs.scatter(1, places.roll(-1, dims=1), values)


def limit_for(scores: Tensor, rate: float) -> float:
    """The limit that a new benign query exceeds with probability ``rate`` at most, from benign scores (N,).

    It is the order statistic of split conformal prediction, which keeps the promise for exchangeable scores of any
    distribution. Where it would take more scores than there are, the limit is the largest of them, and the
    probability is up to 1 / (N + 1).
    """
    rank = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)  # not one more for a rounding error
    return float(scores.double().sort().values[min(rank, len(scores)) - 1])


class Part:
    """Some of a set's images, by their places (N,)."""

    def __init__(self, whole: Images, places: Tensor) -> None:
        self.whole = whole
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Images.take`."""
        return self.whole.take(self.places[indices.to(self.places.device)])

    def batches(self, size: int, *, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Images.batches`."""
        chosen = self.places if order is None else self.places[order.to(self.places.device)]
        return self.whole.batches(size, order=chosen)


def split(context: DefenseContext) -> tuple[Images, Images]:
    """The defender's images in two parts at random: for training, and held out, one in five."""
    data = context.data()
    own = torch.Generator().manual_seed(context.stream("held out"))
    order = torch.randperm(len(data), generator=own)
    count = max(1, round(HELD_OUT * len(data)))
    return Part(data, order[count:]), Part(data, order[:count])
