"""ModelGuard-W: the answer that a surrogate of the target would find least likely, at a bounded distance."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..components import Paper, param
from .base import Defense, Traits

_FLOOR = 1e-6
"""Added to every probability before its logarithm, as in the official code."""


@dataclass(kw_only=True)
class ModelGuardW(Defense):
    """Release the probabilities z with the smallest sum of z·log y that keep the top class and an L1 budget.

    Minimal over all z on the simplex with ‖z - y‖ ≤ epsilon in L1 and z_top ≥ z_j + margin for every other class j;
    1e-6 is added to y before the logarithm. In words: half the budget is moved from the likeliest classes to the least
    likely ones, each of which is filled up to the margin below the top class. The top class itself is lowered as long
    as what it gives is worth more than the room that it takes from the classes below it.

    Tang et al. (USENIX Security 2024), the form for attackers who train on answers as they come. The linear program
    is solved exactly for a whole batch (see `solve`), where the official code calls a solver for each answer.
    Deviation: where the budget does not buy the margin (a near tie and a tiny epsilon), so that the program as it
    stands has no solution, the largest lead that the budget buys takes the margin's place.
    """

    epsilon: float = param(1.0, "the largest L1 distance between released and clean answers", ge=0, le=2)
    margin: float = param(
        1e-4, "the least lead of the top class over every other, if the budget buys it", ge=1e-6, le=0.5
    )

    paper: ClassVar[Paper | None] = Paper(
        key="tang2024modelguard",
        title="ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks",
        authors="Tang, Minxue and Dai, Anna and DiValentin, Louis and Ding, Aolin and Hass, Amin "
        "and Gong, Neil Zhenqiang and Chen, Yiran and Li, Hai",
        year=2024,
        venue="USENIX Security Symposium",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        knob="epsilon",
        sweep=(0.1, 0.2, 0.5, 1.0, 1.5, 2.0),
        preserves="The top class and an L1 budget, but neither the order of the others nor the confidences.",
        weakness="Training on labels alone undoes it, and it is a fixed function of the answer that can be learned.",
    )

    @torch.no_grad()
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """The solution (N, K) for each of ``probs``."""
        return solve(probs.double(), self.epsilon / 2, self.margin).float()


def solve(answers: Tensor, budget: float, margin: float) -> Tensor:
    """The solutions (N, K) of ModelGuard-W's linear program, in float64, up to rounding.

    Costs log(y + 1e-6) rise with y, so with the top class's new value v given, and with it the cap v - margin on
    all others, the best is greedy: take from the likeliest class until it is empty, then from the next; fill the
    least likely up to the cap, then the next. The objective of that is convex and piecewise linear in v. Its
    pieces end where the top class stops losing and starts to gain, where a class meets the cap from above, where
    one is filled, and where one is emptied. Each kind is a sorted list of values in closed form, once the place
    in those before it is known; binary searches by the slope find the piece that holds the minimum.

    Args:
        answers: y, (N, K) on the simplex, K ≥ 2.
        budget: how much mass may be moved, half the L1 distance.
        margin: the least lead of the top class over every other.
    """
    descending, order = answers.sort(dim=1, descending=True, stable=True)
    program = _Program(descending, budget, margin)
    released = torch.empty_like(answers)
    return released.scatter_(1, order, program.solution(program.best_top_value()))


class _Program:
    """One linear program for each row of answers (N, K), which are sorted: the top class, then the other n = K - 1.

    Everything is (N, 1) or (N, n). A class "fills" when mass that is moved to it lifts it to the cap, and "empties"
    when all that it had is moved elsewhere; both happen in order of cost, the cheapest and the costliest first.
    """

    def __init__(self, descending: Tensor, budget: float, margin: float) -> None:
        self.top, self.falling = descending[:, :1], descending[:, 1:].contiguous()
        self.rising = self.falling.flip(1)
        self.budget, self.count = budget, self.falling.shape[1]
        self.ranks = torch.arange(1, self.count + 1, device=descending.device, dtype=descending.dtype)
        self.heads = _from_zero(self.falling)  # the first k of the falling ones together, k from 0 to n
        self.tails = _from_zero(self.rising)
        self.mass = self.top + self.heads[:, -1:]
        self.margin = self.affordable(margin)
        self.costs = (self.rising + _FLOOR).log()
        self.costs_summed = _from_zero(self.costs)
        self.top_cost = (self.top + _FLOOR).log()
        self.exhausting = self.values_that_exhaust()
        self.filling = self.values_that_fill()

    def affordable(self, margin: float) -> Tensor:
        """The margin (N, 1), or the largest lead that the budget buys: all for the top class, from those that follow.

        Bringing the first k of the others to one level takes what lies above it, and the budget suffices for that.
        """
        rise = (self.mass - self.top).clamp_max(self.budget)
        leads = self.top + rise + (rise - self.heads[:, 1:]) / self.ranks
        return leads.amin(dim=1, keepdim=True).clamp(0, margin)

    def lowest_top_value(self) -> Tensor:
        """The least v (N, 1) at which the budget brings all others to the cap, and the cap holds them all."""
        excess = self.heads[:, 1:] + self.ranks * self.margin - self.budget
        others_alone = (excess / self.ranks).amax(dim=1, keepdim=True)
        with_the_top = ((self.top + excess) / (self.ranks + 1)).amax(dim=1, keepdim=True)
        room = (self.mass + self.count * self.margin) / (self.count + 1)
        return torch.maximum(torch.maximum(others_alone, with_the_top), torch.maximum(self.top - self.budget, room))

    def values_that_fill(self) -> Tensor:
        """The v (N, n), rising, up to which the p-th cheapest class fills, for p from n to 1.

        To fill p classes takes p times the cap, less what they have: at most what is moved to the others, which is
        the budget less what the top class gains; nor can they hold more than there is besides the top class.
        """
        need = self.ranks * self.margin + self.tails[:, 1:]
        within_budget = torch.minimum(
            (self.budget + need) / self.ranks, (self.budget + self.top + need) / (self.ranks + 1)
        )
        return torch.minimum(within_budget, self.exhausting.flip(1)).cummin(dim=1).values.flip(1)

    def values_that_exhaust(self) -> Tensor:
        """The v (N, n), rising, up to which p classes at the cap hold no more than there is, p from n to 1."""
        return ((self.mass + self.ranks * self.margin) / (self.ranks + 1)).flip(1)

    # ------------------------------------------------------------------------------------ the pieces at some v

    def above_cap(self, value: Tensor) -> Tensor:
        """How many classes (N, 1) have more than the cap."""
        return self.count - torch.searchsorted(self.rising, value - self.margin, right=True)

    def filled(self, value: Tensor) -> Tensor:
        """How many of the cheapest classes (N, 1) fill, at most n - 1: the last one takes what is left."""
        return (self.count - torch.searchsorted(self.filling, value)).clamp_max(self.count - 1)

    def emptied(self, value: Tensor, above: Tensor) -> Tensor:
        """How many of the costliest classes (N, 1) empty, if the budget is all that there is to stop it.

        The others above the cap come down to it in any case, and that is paid first.
        """
        cap, left = value - self.margin, self.moved_from_others(value)
        without_clipping = torch.searchsorted(self.heads, left, right=True) - 1
        clipping = (left - self.heads.gather(1, above) + above * cap) / cap.clamp_min(1e-300)
        few = torch.minimum(clipping.floor().clamp_min(0), above.double()).long()
        return torch.where(self.heads.gather(1, above) <= left, without_clipping, few)

    def moved_from_others(self, value: Tensor) -> Tensor:
        """The mass (N, 1) that the budget lets the classes besides the top one lose."""
        return self.budget - (self.top - value).clamp_min(0)

    def slope(self, value: Tensor) -> Tensor:
        """The slope (N, 1) of the objective at v, or on either side where two pieces meet."""
        above, filled = self.above_cap(value), self.filled(value)
        exhausted = self.count - torch.searchsorted(self.exhausting, value)
        last = self.count - 1
        giver = torch.maximum(last - self.emptied(value, above), exhausted.clamp_max(last))  # places by rising cost
        taker = torch.minimum(filled, giver)
        first_above = torch.maximum(self.count - above, taker)
        held = (giver - first_above).clamp_min(0)  # classes at the cap that would have more
        giver_cost, taker_cost = self.costs.gather(1, giver), self.costs.gather(1, taker)
        held_costs = self.costs_summed.gather(1, first_above + held) - self.costs_summed.gather(1, first_above)
        filled_costs = self.costs_summed.gather(1, taker)
        source = torch.where(value < self.top, giver_cost, taker_cost)
        return self.top_cost - source + held_costs - held * giver_cost + filled_costs - taker * taker_cost

    # --------------------------------------------------------------------------------------------- the solution

    def best_top_value(self) -> Tensor:
        """The v (N, 1) at which the objective is least."""
        low = self.lowest_top_value()
        high = torch.maximum(low, self.top + self.heads[:, -1:].clamp_max(self.budget))
        low, high = self.narrowed(low, high, self.top)
        low, high = self.narrowed(low, high, self.rising + self.margin)
        low, high = self.narrowed(low, high, self.filling)
        low, high = self.narrowed(low, high, self.exhausting)
        low, high = self.narrowed(low, high, self.values_that_empty((low + high) / 2))
        return torch.where(self.slope((low + high) / 2) < 0, high, low)

    def values_that_empty(self, value: Tensor) -> Tensor:
        """The v (N, n), rising, from which on the q-th costliest class empties, q from 1 to n, on the pieces around v.

        That is, among those on which as many classes exceed the cap as at v, and the top class loses or gains as
        it does there.
        """
        above, loses = self.above_cap(value), (value < self.top).double()
        at_cap = (above - self.ranks).clamp_min(0)
        needed = self.heads.gather(1, torch.maximum(above, self.ranks.long())) + at_cap * self.margin
        weight = at_cap + loses
        fixed = torch.where(needed <= self.budget, -torch.inf, torch.inf)
        moving = (needed - self.budget + loses * self.top) / weight.clamp_min(1)
        return torch.where(weight > 0, moving, fixed).cummax(dim=1).values

    def narrowed(self, low: Tensor, high: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The part of [low, high] (N, 1) between two neighbors of the rising ``ends`` (N, m) that holds the minimum."""
        ends = torch.cat([low, torch.minimum(torch.maximum(ends, low), high), high], dim=1)
        first, last = torch.zeros_like(low, dtype=torch.long), torch.full_like(low, ends.shape[1] - 1, dtype=torch.long)
        for _ in range(math.ceil(math.log2(ends.shape[1]))):  # the minimum is between the ends `first` and `last`
            middle = (first + last) // 2
            falls = self.slope(ends.gather(1, middle)) < 0
            first, last = torch.where(falls, middle, first), torch.where(falls, last, middle)
        return ends.gather(1, first), ends.gather(1, last)

    def solution(self, value: Tensor) -> Tensor:
        """The best answers (N, K) with v for the top class, in the order of the program's."""
        cap = value - self.margin
        gained = value - self.top
        # Without a budget the cheapest would take all that there is; more than that is never moved to them.
        cheapest = torch.minimum((self.mass - value - (self.ranks - 1) * cap).clamp_min(0), cap)
        wanted = (cheapest - self.rising).clamp_min(0).sum(dim=1, keepdim=True)
        given = torch.minimum(wanted, self.budget - gained.clamp_min(0)).clamp_min(0)
        clipped = torch.minimum(self.falling, cap)
        lost = (self.heads[:, -1:] - clipped.sum(dim=1, keepdim=True)).clamp_min(0)
        left = clipped - _greedy((given + gained - lost).clamp_min(0), clipped)
        raised = _greedy(given, (cap - self.rising).clamp_min(0))
        return torch.cat([value, left + raised.flip(1)], dim=1)


def _from_zero(summands: Tensor) -> Tensor:
    """Sums (N, n + 1) of the first 0 to n summands (N, n)."""
    return torch.nn.functional.pad(summands.cumsum(dim=1), (1, 0))


def _greedy(amount: Tensor, most: Tensor) -> Tensor:
    """How an amount (N, 1) is spread over the columns of ``most`` (N, n): the first gets all it can hold, and so on."""
    before = most.cumsum(dim=1) - most
    return torch.minimum((amount - before).clamp_min(0), most)
