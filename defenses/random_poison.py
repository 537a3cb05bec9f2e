"""Random poisoning: every answer leans towards a class drawn by chance."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..components import Paper, param
from .base import Defense, DefenseContext, Traits


@dataclass(kw_only=True)
class RandomPoison(Defense):
    """Release (1 - epsilon/2)·y + (epsilon/2)·e_j, where class j is drawn anew among all but the top one.

    The L1 distance to the clean answer y is epsilon·(1 - y_j): nearly the budget, since j is rarely a likely class.
    The top class stays where it leads j by (epsilon/2) / (1 - epsilon/2) or more. Over draws, every class but the top
    one gains (epsilon/2) / (K - 1), K being the number of classes; a lead below that over 1 - epsilon/2 is therefore
    reversed in the mean (0.091 with ten classes and the default). Between two classes there is but one j: the answer
    is a fixed function of y, and draws nothing. At epsilon = 2 an answer is a wrong class, and names the top one only
    by never being it.

    The "Random" baseline in the code of Mazeika, Li and Forsyth (ICML 2022), who sweep epsilon from 0 to 1. There
    every query is answered once, so that it is not said whether asking again gives another draw; here it does.
    """

    epsilon: float = param(0.9, "the largest L1 distance between released and clean answers", gt=0, le=2)

    paper: ClassVar[Paper | None] = Paper(
        key="mazeika2022steer",
        title="How to Steer Your Adversary: Targeted and Efficient Model Stealing Defenses with Gradient Redirection",
        authors="Mazeika, Mantas and Li, Bo and Forsyth, David",
        year=2022,
        venue="International Conference on Machine Learning",
        arxiv="2206.14157",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stochastic=True,
        knob="epsilon",
        sweep=(0.1, 0.2, 0.5, 0.8, 0.9, 1.0),
        preserves="Answers within an L1 budget; confident ones keep their top class while it is below 1.",
        weakness="Below an epsilon of 2 two different answers to one image give the clean one: the smaller of each "
        "probability, rescaled (between two classes all answers are one, which can be inverted). So does the mean of "
        "many, less the equal share of poison that every class but the top one gets.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Seed the draws."""
        self.generator = context.generator()

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) mixed with random classes; advances the generator."""
        clean = probs.double()
        count, classes = clean.shape
        drawn = torch.randint(classes - 1, (count,), generator=self.generator, device=self.generator.device)
        drawn = drawn + (drawn >= clean.argmax(dim=1))  # leave the top class out
        return torch.lerp(clean, F.one_hot(drawn, classes).double(), self.epsilon / 2).float()
