"""Reverse sigmoid: a bounded perturbation that many probabilities share."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..components import Paper, param
from .base import Defense, Traits

_EDGE = 1e-7
"""Probabilities are kept this far from 0 and 1 before the logit: about float32's resolution at 1."""

_KEPT_LEAD = 0.01
"""The share of its lead over every other class that the top class keeps at least, with ``keep_argmax``."""


@dataclass(kw_only=True)
class ReverseSigmoid(Defense):
    """Subtract r(p) = beta·(sigmoid(gamma·logit(p)) - 1/2) from every p, clamp and renormalize.

    High probabilities are lowered and low ones raised, so that very different answers come out alike. The top
    class stays while beta is small: with ten classes and gamma = 0.2, for about nine of ten peaked random
    answers at beta = 0.9; with 100 classes, for few. ``keep_argmax``, a variant of ours, moves each answer
    towards the perturbed one only as far as its top class keeps 1 % of its lead over every other class.

    Lee et al. (2019). We know of no official code; ART's ``ReverseSigmoid`` is the same function up to the
    bounds that keep the logit finite (1e-9 there, 1e-7 here). They act on p: applied to the odds p / (1 - p),
    as in some published code, they leave every p > 1/2 unperturbed. The clamp to [0, 1], as in ART, acts only
    for beta > 1. What a beta does depends on the number of classes; compare by measured L1 distance. The
    defaults are near the pair (0.21, 0.2) that ModelGuard's authors tuned to an L1 of 1 on CIFAR-10.
    """

    beta: float = param(0.2, "twice the largest change of a probability before renormalization", ge=0)
    gamma: float = param(0.2, "how fast the change saturates as p leaves 1/2", gt=0)
    keep_argmax: bool = param(False, "whether the perturbation is shrunk until the top class stays")

    paper: ClassVar[Paper | None] = Paper(
        key="lee2019defending",
        title="Defending Against Neural Network Model Stealing Attacks Using Deceptive Perturbations",
        authors="Lee, Taesung and Edwards, Benjamin and Molloy, Ian and Su, Dong",
        year=2019,
        venue="IEEE Security and Privacy Workshops",
        arxiv="1806.00054",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        knob="beta",
        sweep=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
        preserves="The top class while beta is small for the number of classes, but not the confidences.",
        weakness="It is one scalar function for all probabilities, which an attacker can fit and invert; labels alone "
        "undo it while the top class stays.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_argmax:
            self.declare(argmax_preserving=True, preserves="The top class, but not the confidences.")

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """The perturbed probabilities (N, K)."""
        clean = probs.double()
        perturbation = self.beta * (torch.sigmoid(self.gamma * torch.logit(clean, eps=_EDGE)) - 0.5)
        perturbed = (clean - perturbation).clamp(0, 1)
        released = perturbed / perturbed.sum(dim=1, keepdim=True)
        return (keep_top_class(clean, released) if self.keep_argmax else released).float()


def keep_top_class(clean: Tensor, released: Tensor) -> Tensor:
    """Move from ``clean`` towards ``released``, both (N, K), as far as the clean top class stays on top.

    Along the segment every lead of the top class changes linearly, so the largest step at which it still has
    a hundredth of its clean lead over each class is a minimum of K ratios.
    """
    top = clean.argmax(dim=1, keepdim=True)
    before = clean.gather(1, top) - clean
    lost = before - (released.gather(1, top) - released)
    step = torch.where(lost > 0, (1 - _KEPT_LEAD) * before / lost, torch.inf)
    return clean + step.amin(dim=1, keepdim=True).clamp_max(1) * (released - clean)
