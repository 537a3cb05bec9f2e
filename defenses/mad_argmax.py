"""MAD-argmax: answers that turn the attacker's gradient away and keep the top class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Traits
from .mad import MAD

_ENUMERATED = 10
"""Up to so many classes every subset is tried, as in the official code."""
_SORTINGS = 4
_FLIPS = 8
"""The most rounds of the search beyond."""
_LEAD = 1e-5
"""What the top class has over the others it shares an answer with, before renormalization: the official value."""
_VANISHING = 1e-24
"""Squared lengths below count as zero."""


@dataclass(kw_only=True)
class MADArgmax(MAD):
    """Mix the answer with the one that turns a surrogate's gradient furthest, among those that keep the top class.

    The objective is that of MAD, and so are the surrogate and the way to the budget: z goes from the clean answer
    straight towards the best candidate. Candidates are the extreme points of the answers that keep the top class,
    the uniform distributions over a set of classes that contains it. There the surrogate's gradient depends on a
    set S through its size m and two sums over it, so that no gradient is computed: the cosine to be made small is
    (A - m·a) / sqrt(m·(1 - 2·P + m·b)), up to a factor, where A sums y - p and P sums p over S, a = p·(y - p) and
    b = p·p. The top class gets 1e-5 more than the others, as in the official code, and keeps a lead.

    With ten classes or fewer, all 2^(K-1) sets are tried. With more, no sorting finds the best set for certain: a
    set of given size balances two sums against each other, as in subset-sum problems. Where the best cosine is
    negative, the best set of its size is a sorted prefix for some weight between the two sums, whose fixed point is
    iterated; single classes are then moved in or out while that helps. With a surrogate near the uniform answer, such
    as an untrained one, the tests find the best set every time at 13 classes; far from it a worse one now and then.
    The objective ``raw`` is a sum over the set, and sorting finds the best one for any number of classes.

    Orekondy, Schiele and Fritz (ICLR 2020). Deviations: those of MAD; beyond ten classes the official code grows
    one set greedily, until 1,024 have been tried, and crashes with 11 to 45 classes, because there are fewer. There
    it always compares unit gradients, whatever the objective is set to; here ``raw`` is ``raw`` at any K.
    """

    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        needs=("surrogate",),
        knob="epsilon",
        sweep=(0.1, 0.2, 0.5, 0.8, 0.9, 1.0),
        preserves="Answers within an L1 budget, and their top class.",
        weakness="Training on labels alone undoes it; a table made with the known defense (`bayes`) can bring back "
        "more.",
    )

    def goal(self, clean: Tensor, images: Tensor) -> Tensor:
        """The best candidates (N, K), float64, for clean answers and their images."""
        raw = self.objective == "raw"
        chosen = furthest_set(clean) if raw else most_deviating_set(clean, self.imitation(images))
        uniform = chosen / chosen.sum(dim=1, keepdim=True)
        lead = torch.zeros_like(clean).scatter(1, clean.argmax(dim=1, keepdim=True), _LEAD)
        return (uniform + lead) / (1 + _LEAD)


def furthest_set(clean: Tensor) -> Tensor:
    """The sets, as zeros and ones (N, K), over which the uniform answer u maximizes ‖u - y‖² and keeps y's top class.

    For a set of m classes that is 1/m - 2/m times their probabilities' sum + ‖y‖²: the least likely ones are best.
    """
    order = _with_top_first(clean, clean.argmax(dim=1, keepdim=True))
    sizes = torch.arange(1, clean.shape[1] + 1, device=clean.device)
    distances = (1 - 2 * clean.gather(1, order).cumsum(dim=1)) / sizes
    return _prefix(order, distances.argmax(dim=1, keepdim=True))


def most_deviating_set(clean: Tensor, surrogate: Tensor) -> Tensor:
    """The sets, as zeros and ones (N, K), over which the uniform answer u minimizes cos(u - p, y - p).

    They contain the top class of the answers y; p are the surrogate's, both (N, K) in float64. Exact up to ten
    classes, see `MADArgmax`.
    """
    turn = _Turn(clean, surrogate)
    return turn.by_enumeration() if clean.shape[1] <= _ENUMERATED else turn.by_search()


class _Turn:
    """The objective on sets of classes, for one batch of answers y and surrogate answers p, (N, K)."""

    def __init__(self, clean: Tensor, surrogate: Tensor) -> None:
        self.classes = clean.shape[1]
        self.clean = clean
        self.surrogate = surrogate
        self.top = clean.argmax(dim=1, keepdim=True)
        self.course = clean - surrogate
        # Measured from the uniform answer, from which an untrained surrogate's hardly differs: little cancels.
        self.offset = surrogate - 1 / self.classes
        self.level = (self.course * self.offset).sum(dim=1, keepdim=True)
        self.square = self.offset.square().sum(dim=1, keepdim=True)
        # ‖0 - unit(y - p)‖² is 1, as at a cosine of one half.
        self.vanished = self.course.norm(dim=1, keepdim=True) / 2

    def parts(self, sizes: Tensor, course: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """(u - p)·(y - p) and ‖u - p‖² for sets of these sizes, and of these sums of ``course`` and ``offset``."""
        squares = 1 / sizes - 1 / self.classes - 2 * offset / sizes + self.square
        return course / sizes - self.level, squares.clamp_min(0)

    def cosine(self, products: Tensor, squares: Tensor) -> Tensor:
        """cos(u - p, y - p) times ‖y - p‖, which is the same for all sets."""
        return torch.where(
            squares > _VANISHING, products / squares.clamp_min(_VANISHING).sqrt(), self.vanished.expand_as(products)
        )

    def by_enumeration(self) -> Tensor:
        """The best of all sets that contain the top class."""
        codes = torch.arange(2**self.classes, device=self.clean.device)
        sets = ((codes[:, None] >> torch.arange(self.classes, device=codes.device)) & 1).double()
        cosines = self.cosine(*self.parts(sets.sum(dim=1).clamp_min(1), self.course @ sets.T, self.offset @ sets.T))
        without_top = sets.T[self.top.squeeze(1)] == 0
        return sets[cosines.masked_fill(without_top, torch.inf).argmin(dim=1)]

    def by_search(self) -> Tensor:
        """A set that no single class moved in or out improves, up to the number of rounds."""
        chosen, best = self.prefix(torch.zeros_like(self.level))
        self.improve(chosen, best, _Turn.another_prefix, _SORTINGS - 1)
        self.improve(chosen, best, _Turn.flip, _FLIPS)
        return chosen

    def improve(self, chosen: Tensor, best: Tensor, move: "_Move", rounds: int) -> None:
        """Move the sets ``chosen`` (N, K), whose values are ``best`` (N, 1), in place, each until it gets no better.

        A move depends on nothing but its set: where one does not help, neither does the next, and the row is left out.
        """
        rows = torch.arange(len(chosen), device=chosen.device)
        for _ in range(rounds):
            found, value = move(_Turn(self.clean[rows], self.surrogate[rows]), chosen[rows])
            better = (value < best[rows]).squeeze(1)
            rows = rows[better]
            if len(rows) == 0:
                break
            chosen[rows], best[rows] = found[better], value[better]

    def sums(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sizes and sums of the sets ``chosen`` (N, K), each (N, 1)."""
        size, course, offset = (
            part.sum(dim=1, keepdim=True) for part in (chosen, chosen * self.course, chosen * self.offset)
        )
        return size, course, offset

    def prefix(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The best set, and its value (N, 1), among the m smallest entries of ``course + weight * offset``, any m."""
        order = _with_top_first(self.course + weight * self.offset, self.top)
        sizes = torch.arange(1, self.classes + 1, device=order.device).double()
        course, offset = (part.gather(1, order).cumsum(dim=1) for part in (self.course, self.offset))
        value, last = self.cosine(*self.parts(sizes, course, offset)).min(dim=1, keepdim=True)
        return _prefix(order, last), value

    def another_prefix(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The best set, and its value (N, 1), for the weight that ``chosen`` would have at a minimum."""
        # There, the objective's slopes in the two sums are to each other as 1 to the quotient of its parts.
        products, squares = self.parts(*self.sums(chosen))
        return self.prefix(products / squares.clamp_min(_VANISHING))

    def flip(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The best set, and its value (N, 1), that differs from ``chosen`` in one class other than the top one."""
        sizes, course, offset = self.sums(chosen)
        sign = 1 - 2 * chosen
        # Only the top class, which stays, could leave an empty set.
        parts = self.parts((sizes + sign).clamp_min(1), course + sign * self.course, offset + sign * self.offset)
        value, where = self.cosine(*parts).scatter(1, self.top, torch.inf).min(dim=1, keepdim=True)
        return chosen.scatter(1, where, 1 - chosen.gather(1, where)), value


_Move = Callable[[_Turn, Tensor], tuple[Tensor, Tensor]]


def _with_top_first(scores: Tensor, top: Tensor) -> Tensor:
    """The classes (N, K), the clean answer's top one (N, 1) first, the others by ascending score."""
    return scores.scatter(1, top, -torch.inf).argsort(dim=1, stable=True)


def _prefix(order: Tensor, last: Tensor) -> Tensor:
    """The sets, as zeros and ones (N, K), of the first classes in ``order`` (N, K) up to the place ``last`` (N, 1)."""
    taken = torch.arange(order.shape[1], device=order.device) <= last
    return torch.zeros(order.shape, dtype=torch.float64, device=order.device).scatter(1, order, taken.double())
