"""Rounding: fewer digits are released."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..components import Paper, param
from .base import Defense, Traits

TRAMER = Paper(
    key="tramer2016stealing",
    title="Stealing Machine Learning Models via Prediction APIs",
    authors="Tram{\\`e}r, Florian and Zhang, Fan and Juels, Ari and Reiter, Michael and Ristenpart, Thomas",
    year=2016,
    venue="USENIX Security Symposium",
    arxiv="1609.02943",
)
"""Discusses both rounding confidences and omitting them."""


@dataclass(kw_only=True)
class Rounding(Defense):
    """Round every probability half to even to ``decimals`` places, then renormalize.

    A row in which everything rounds to zero (many classes, few decimals) is released as the uniform vector:
    it says nothing, as its rounding does. No two classes swap places, but rounding makes ties, so the top
    class is not guaranteed.

    Rounding is among the countermeasures that Tramèr et al. (2016) discuss. Deviation: the published code
    that we know does not renormalize, so that its rows need not sum to one; renormalization and the uniform
    row are msbench's convention.
    """

    decimals: int = param(2, "decimal places that are kept", ge=0, le=7)

    paper: ClassVar[Paper | None] = TRAMER
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        knob="decimals",
        sweep=(4, 3, 2, 1),
        preserves="Every probability to within the rounding, and what renormalizing adds where many classes round to "
        "zero; the top class unless rounding makes it tie.",
        weakness="A few decimals are enough to train on, and the top class can always be trained on.",
    )

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """Each row of ``probs`` (N, K) rounded and divided by its sum."""
        # In float64: scaling by 10^7 would leave float32 no digits to round.
        rounded = torch.round(probs.double(), decimals=self.decimals)
        total = rounded.sum(dim=1, keepdim=True)
        uniform = torch.full_like(rounded, 1 / probs.shape[1])
        return torch.where(total > 0, rounded / total, uniform).float()
