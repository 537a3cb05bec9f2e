"""Refusals: what was not answered teaches nothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import RecoveryTraits
from .belief import Believing


@dataclass(kw_only=True)
class Refusals(Believing):
    """Put the belief of the attacker's clone in the place of every answer that was refused.

    Whoever is refused sees it, and need not train on the uniform vector that stands for no answer. A clone that is
    taught what it believes anyway learns nothing, whichever the attack, and a generator that looks for disagreement
    finds none there; after the last answer the clone stays about as it is. An answer in which all classes are equal is
    taken for a refusal, which tells as little.

    The clone is the attack's own, taken anew ``refreshes`` times in a run, so that what is taught is a little behind
    what is believed. Where answers are labels, so is what stands for those that were refused, and attacks keep the
    settings that they have for labels.

    A countermeasure of msbench's own.
    """

    traits: ClassVar[RecoveryTraits] = RecoveryTraits(restores="queries that a detector refuses", knows=("clone",))

    @property
    def labels_only(self) -> bool:
        """As without this recovery: what was answered stays as it is."""
        return self.victim.labels_only

    def complete(self, released: Tensor, images: Tensor, belief: Tensor) -> Tensor:
        """``belief`` (N, K) where ``released`` (N, K) says nothing."""
        refused = (released == released[:, :1]).all(dim=1, keepdim=True)
        if self.labels_only:
            belief = F.one_hot(belief.argmax(dim=1), self.num_classes).float()
        return torch.where(refused, belief, released)
