"""Completion: what an answer leaves out is filled in from the clone's own belief."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import RecoveryContext, RecoveryTraits
from .belief import Believing

_CAPS = 0.5 * 10 ** (-torch.arange(24) / 4)
"""Upper bounds on what is filled in, as shares of what was released, largest first: from 1/2 to 9e-7."""

_SAME = 1e-5
"""Released probabilities that differ by no more are the same in float32."""


@dataclass(kw_only=True)
class Completion(Believing):
    """Fill the zeros of an answer, which rounding or a top-k cut left, with what the attacker's clone believes.

    The clone's probabilities of the missing classes go beside the released ones in the proportion that the clone
    gives them, each cut off at a bound, and all are rescaled. The bound is the largest of a geometric series for
    which the rebuilt defense would release the very same answer for the completed one: what contradicts the answer
    is never filled in. An answer with no zeros, or one that no completion explains (a random defense), stays as it
    is; so, without a defense, does every answer. Ratios among released probabilities are kept.

    The clone is the attack's own, taken anew ``refreshes`` times in a run; for an attack that trains its clone from
    scratch whenever asked for it, that is what this costs.

    A countermeasure of msbench's own.
    """

    traits: ClassVar[RecoveryTraits] = RecoveryTraits(
        restores="what rounding or a top-k cut left out", knows=("defense", "clone")
    )

    def prepare(self, context: RecoveryContext) -> None:
        """Rebuild the defense."""
        super().prepare(context)
        self.defense = context.known_defense()
        self.caps = _CAPS.to(context.device)

    def complete(self, released: Tensor, images: Tensor, belief: Tensor) -> Tensor:
        """The released answers (N, K) with their zeros filled in."""
        missing = torch.where(released > 0, 0, belief)
        share = missing / (1 - missing.sum(dim=1, keepdim=True)).clamp_min(_SAME)
        lacking = (share > 0).any(dim=1, keepdim=True)
        completed = released
        for cap in self.caps.flip(0):  # the largest that fits comes last and stays
            tried = released + torch.minimum(share, cap)
            tried = tried / tried.sum(dim=1, keepdim=True)
            fits = (self.defense.release(tried, images) - released).abs().amax(dim=1, keepdim=True) <= _SAME
            completed = torch.where(lacking & fits, tried, completed)
        return completed
