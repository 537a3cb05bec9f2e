"""Maximizing angular deviation: answers that turn the attacker's gradient away."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import Paper, param
from .base import Defense, DefenseContext, Traits
from .simplex import move_within

OREKONDY = Paper(
    key="orekondy2020prediction",
    title="Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks",
    authors="Orekondy, Tribhuvanesh and Schiele, Bernt and Fritz, Mario",
    year=2020,
    venue="International Conference on Learning Representations",
    arxiv="1906.10908",
)


@dataclass(kw_only=True)
class MAD(Defense):
    """Mix the answer with the class that turns the training gradient of a surrogate furthest from its course.

    The objective, maximized over released answers z, is the squared distance between the unit gradients of a
    surrogate's cross-entropy under z and under the clean answer y. As in the official solver, it is evaluated
    on the K one-hot answers, and the released one goes from y straight towards the best of them, e, as far as
    the L1 budget allows: z = (1 - t)·y + t·e with t = min(1, epsilon / ‖y - e‖). The chosen class overtakes
    every class that leads it by less than t / (1 - t), which from epsilon = 1 on is all of them, t being 1/2
    or more.

    The official code differentiates with respect to the last layer's weight only. There the gradient under z is the
    outer product of p - z with the penultimate features (p the surrogate's answer), the features cancel on
    normalization, and the objective is ‖unit(z - p) - unit(y - p)‖²: a closed form instead of K backward passes for
    each query. It holds for surrogates that end in a linear layer. With an untrained LeNet or ResNet p is nearly
    uniform, and the chosen class is one to which the target gives almost nothing.

    Orekondy, Schiele and Fritz (ICLR 2020); the surrogate is an untrained network of the target's
    architecture, as in their instructions. The objective ``raw`` leaves the gradients unnormalized, as the
    official code does unless told otherwise: it always picks the least likely class, whatever the surrogate.
    Deviations: the budget is L1 only, and where a gradient vanishes (y = p) its unit vector counts as zero.
    Ties go to the lowest class index, and near ties to whichever class the rounding of the surrogate favors.
    Their argmax-preserving variant is ``mad_argmax``.
    """

    epsilon: float = param(0.9, "the largest L1 distance between released and clean answers", ge=0, le=2)
    objective: Literal["unit", "raw"] = param("unit", "distance between unit gradients, or between raw ones")

    version: ClassVar[str] = "2"
    paper: ClassVar[Paper | None] = OREKONDY
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        needs=("surrogate",),
        knob="epsilon",
        sweep=(0.1, 0.2, 0.5, 0.8, 0.9, 1.0),
        preserves="Answers within an L1 budget; confident ones keep their top class while it is below 1.",
        weakness="It is a fixed function of the answer and of a surrogate whose choice matters little: a table made "
        "with the known defense (`bayes`) can undo most of it. Labels alone do where the budget leaves the top class "
        "in place.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Build the surrogate; at no seed is it what the target was before training."""
        surrogate = context.new_surrogate(context.stream("surrogate")).to(context.device)
        self.surrogate = surrogate.float().eval().requires_grad_(False)

    @torch.no_grad()
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) moved by at most ε towards the most misleading answer to each."""
        clean = probs.double()
        return move_within(clean, self.goal(clean, images), self.epsilon).float()

    def goal(self, clean: Tensor, images: Tensor) -> Tensor:
        """The one-hot answers (N, K), float64, that maximize the objective for clean answers and their images."""
        if self.objective == "raw":
            return F.one_hot(clean.argmin(dim=1), clean.shape[1]).double()
        return F.one_hot(most_deviating_class(clean, self.imitation(images)), clean.shape[1]).double()

    def imitation(self, images: Tensor) -> Tensor:
        """The surrogate's answers (N, K), float64."""
        return self.surrogate(images.float()).double().softmax(dim=1)  # type: ignore[no-any-return]


def most_deviating_class(clean: Tensor, surrogate: Tensor) -> Tensor:
    """The k (N,) that maximizes ‖unit(e_k - p) - unit(y - p)‖² for answers y and surrogate answers p, (N, K).

    The squared distance of unit vectors is 2 - 2·cos, so this is the k with the smallest
    (e_k - p)·(y - p) / ‖e_k - p‖.
    """
    course = clean - surrogate
    products = course - (surrogate * course).sum(dim=1, keepdim=True)
    squares = (1 - surrogate).square() + surrogate.square().sum(dim=1, keepdim=True) - surrogate.square()
    return (products / squares.clamp_min(1e-24).sqrt()).argmin(dim=1)
