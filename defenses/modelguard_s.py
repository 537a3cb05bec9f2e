"""ModelGuard-S: answers rounded to earlier ones, so that they tell less about the target."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..components import Paper, param
from ..errors import BadParameter
from .base import Defense, DefenseContext, Traits

_AT_ONCE = 2**24
"""Differences between answers and centroids that are held together, in numbers."""


@dataclass(kw_only=True)
class ModelGuardS(Defense):
    """Release an earlier answer of the same top class where one is near enough, the first of them that is.

    Each class has an ordered list of centroids, empty at first. An answer y is replaced by the first centroid of its
    top class at most epsilon away from it in L1. If there is none, y itself is released and appended to the list.
    Once a list covers the answers of its class they fall on few points, which bounds what can be learned from
    them, whatever the attacker makes of them. The lists serve all accounts: what one is given may be, to the last
    digit, what another was told before.

    Tang et al. (USENIX Security 2024), ordered incremental quantization. A batch is answered as its rows would be,
    one after the other. Deviations: the lists together hold at most ``capacity`` centroids, the same number for each
    class; when a list is full, an answer far from all in it is released as it is, and not appended. In the official
    code they grow without bound. Centroids drawn at random around an answer, k-means, and lists made beforehand from
    a data set, all of them options there, are not offered.
    """

    epsilon: float = param(1.0, "the largest L1 distance between released and clean answers", ge=0, le=2)
    capacity: int = param(50_000, "centroids that are kept, shared out evenly among the classes", ge=1)

    paper: ClassVar[Paper | None] = Paper(
        key="tang2024modelguard",
        title="ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks",
        authors="Tang, Minxue and Dai, Anna and DiValentin, Louis and Ding, Aolin and Hass, Amin "
        "and Gong, Neil Zhenqiang and Chen, Yiran and Li, Hai",
        year=2024,
        venue="USENIX Security Symposium",
    )
    version: ClassVar[str] = "2"
    """2: honest users are measured without a trace in the lists."""
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        stateful=True,
        knob="epsilon",
        sweep=(0.1, 0.2, 0.5, 1.0, 1.5, 2.0),
        preserves="The top class and an L1 budget; the same query gets the same answer again.",
        weakness="Training on labels alone undoes it. Released answers are exact answers to earlier queries, those of "
        "other accounts included: whoever asks first is told the truth and decides what others are told. An attacker "
        "can fill the lists, after which what is new is released as it is; the longer they are, the slower is every "
        "answer.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Start with empty lists. Raises `BadParameter` if there is no room for one centroid of each class."""
        classes = context.num_classes
        self.room = self.capacity // classes
        if self.room == 0:
            raise BadParameter(
                f"{self.label()}: capacity={self.capacity} is less than one centroid for each of {classes} classes"
            )
        self.centroids = torch.full((classes, 1, classes), torch.inf, device=context.device)  # by class, then in order
        self.counts = torch.zeros(classes, dtype=torch.long, device=context.device)

    @torch.no_grad()
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """The first near centroid for each of ``probs`` (N, K), or the answer itself.

        Each round appends, in every class with room, the first answer that nothing is near to, and gives it to all
        later ones that it is near to. There are as many rounds as the class with most of them has new centroids: which
        answers become centroids depends on those before them, and to decide all at once would take the distances
        between all pairs, N times as many as a round's.
        """
        tops = probs.argmax(dim=1)
        released, waiting = self._from_lists(probs, tops)
        while len(waiting := waiting[self.counts[tops[waiting]] < self.room]):
            leaders = self._first_of_each_class(waiting, tops)
            self._append(probs[leaders], tops[leaders])
            leader_of = torch.zeros_like(self.counts).scatter(0, tops[leaders], leaders)[tops[waiting]]
            near = _distance(probs[waiting], probs[leader_of]) <= self.epsilon
            released[waiting[near]] = probs[leader_of[near]]
            waiting = waiting[~near]
        return released

    def _from_lists(self, probs: Tensor, tops: Tensor) -> tuple[Tensor, Tensor]:
        """The first near centroids, or ``probs`` (N, K) themselves, and the places of those that none is near to."""
        width = self.centroids.shape[1] * self.centroids.shape[2]
        released, found = [], []
        size = max(1, _AT_ONCE // width)
        for part, classes in zip(torch.split(probs, size), torch.split(tops, size), strict=True):
            lists = self.centroids[classes]
            near = _distance(part.unsqueeze(1), lists) <= self.epsilon
            any_near, first = near.max(dim=1)
            nearest = lists[torch.arange(len(part), device=part.device), first]
            released.append(torch.where(any_near.unsqueeze(1), nearest, part))
            found.append(any_near)
        return torch.cat(released), (~torch.cat(found)).nonzero().squeeze(1)

    def _first_of_each_class(self, waiting: Tensor, tops: Tensor) -> Tensor:
        """Of the ``waiting`` places, the first of each top class."""
        first = torch.full_like(self.counts, len(tops))
        first = first.scatter_reduce(0, tops[waiting], waiting, "amin")
        return first[first < len(tops)]

    def _append(self, answers: Tensor, classes: Tensor) -> None:
        """Append answers (n, K) to the lists of n different classes, which have room for them."""
        length = self.centroids.shape[1]
        if int(self.counts[classes].max()) == length:
            more = min(length, self.room - length)
            self.centroids = torch.nn.functional.pad(self.centroids, (0, 0, 0, more), value=torch.inf)
        self.centroids[classes, self.counts[classes]] = answers
        self.counts[classes] += 1


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """L1 distances along the last dimension, in float64: the same however many are taken together."""
    return (first.double() - second.double()).abs().sum(dim=-1)
