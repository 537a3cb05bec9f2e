"""Linear-map inversion: answers are read in the coordinates that the most extreme of them span."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...components import param
from .base import Recovery, RecoveryContext, RecoveryTraits

_RIDGE = 1e-6
"""Keeps vertices that have fallen together from being inverted: far below what is left of a class that can be."""


@dataclass(kw_only=True)
class LinearInversion(Recovery):
    """Take it that released = A·p + b, fit the map to the released answers alone, and invert it.

    Such a map takes the simplex to a smaller one. Where that lies shows in the answers: the one surest of class k
    is, if the target was ever sure of that class, where the map takes certainty of k. These K vertices are A and b
    (b is absorbed, since probabilities sum to one), and an answer's coordinates with respect to them are the clean
    probabilities. What falls outside (negative coordinates) is cut off and the rest rescaled.

    One vertex takes one sure answer, which the first batches may not hold. Until ``answers`` have been seen, and for
    a class that never came top, the vertex is where mixing with a fixed vector would put it, released = (1 - sum b)·p
    + b, with b_k the smallest probability of class k so far: exact for a target that now and then rules each class
    out. Without a defense answers are stretched only as far as the target's surest answers fall short of certainty.
    The map must leave the top class of sure answers in place; nobody could tell a permutation from the answers.

    A countermeasure of msbench's own.
    """

    traits: ClassVar[RecoveryTraits] = RecoveryTraits(
        restores="a fixed linear map: mixing with a constant, or of classes with each other"
    )

    answers: int = param(1000, "answers that are seen before single ones are taken for vertices", ge=1)

    def prepare(self, context: RecoveryContext) -> None:
        """Nothing has been seen yet."""
        super().prepare(context)
        classes = self.num_classes
        self.seen = 0
        self.smallest = torch.ones(classes, dtype=torch.float64, device=context.device)
        self.surest = torch.zeros(classes, classes, dtype=torch.float64, device=context.device)

    def query(self, images: Tensor) -> Tensor:
        """The coordinates of the released answers with respect to the vertices that all answers so far suggest."""
        released = self.victim.query(images).double()
        if len(released) == 0:
            return released.float()
        self._look_at(released)
        vertices = self._vertices()
        # Least squares with a ridge towards the released answer: where two vertices coincide nothing is inverted.
        gram = vertices @ vertices.T + _RIDGE * torch.eye(len(vertices), dtype=vertices.dtype, device=vertices.device)
        weighted = (released @ vertices.T + _RIDGE * released).T
        # The ridge leaves nothing singular to check for, which would make the host wait for an accelerator.
        inside: Tensor = torch.linalg.solve_ex(gram, weighted).result.T.clamp_min(0)
        total = inside.sum(dim=1, keepdim=True)
        return (inside / total).float()

    def _look_at(self, released: Tensor) -> None:
        """Keep each class's smallest probability, and the surest answer in which it came top."""
        self.seen += len(released)
        self.smallest = torch.minimum(self.smallest, released.amin(dim=0))
        came_top = torch.zeros_like(released).scatter(1, released.argmax(dim=1, keepdim=True), 1)
        sureness, which = (released * came_top).max(dim=0)
        surer = sureness > self.surest.diagonal()
        self.surest = torch.where(surer[:, None], released[which], self.surest)

    def _vertices(self) -> Tensor:
        """Where certainty of each class goes: (K, K), a released answer in each row."""
        mixed = (1 - self.smallest.sum()).clamp_min(0) * torch.eye(
            len(self.smallest), dtype=self.smallest.dtype, device=self.smallest.device
        ) + self.smallest
        if self.seen < self.answers:
            return mixed
        return torch.where(self.surest.sum(dim=1, keepdim=True) > 0, self.surest, mixed)
