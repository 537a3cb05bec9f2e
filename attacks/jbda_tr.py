"""JBDA-TR: grow a few images into many by pulling copies of each towards random other classes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..targets.blackbox import Victim
from .base import AttackContext, AttackTraits
from .jacobian import JacobianAugmentation


@dataclass(kw_only=True)
class JBDATR(JacobianAugmentation):
    """Targeted-random augmentation: each round pulls k copies of every image towards random classes.

    A copy takes T steps of signed gradient descent on the substitute's cross-entropy to its target, and stays
    within epsilon of its image in every pixel; a round multiplies the transfer set by k + 1 (T-RND of Juuti,
    Szyller, Marchal and Asokan, IEEE EuroS&P 2019, arXiv 1805.02628).

    Deviations: the authors released no code for the attack, so k, T and the step are those of a public
    re-implementation, which draws a new target at every step, any class included, and so makes a random walk of it:
    ``targets=redrawn``. Seeds, passes, rate and momentum are `JBDA`'s; it has ten times the seeds, five times the
    passes, ten times the rate and a momentum of 0.5. Seeds come from the pool and are not of the victim's classes;
    copies are rounded to 8 bits before they are asked about; the substitute is the clone's architecture, trained from
    scratch each round.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="pool", access="either", queries_per_step="B")
    paper: ClassVar[Paper] = Paper(
        key="juuti2019prada",
        title="{PRADA}: Protecting Against {DNN} Model Stealing Attacks",
        authors="Juuti, Mika and Szyller, Sebastian and Marchal, Samuel and Asokan, N.",
        year=2019,
        venue="IEEE European Symposium on Security and Privacy",
        arxiv="1805.02628",
    )

    rounds: int | None = param(None, "rounds of augmentation; none goes on until the budget is spent", ge=1)
    per_image: int = param(3, "k, copies made of each stored image in a round", ge=1)
    epsilon: float = param(0.1, "how far a pixel may move in a round, where pixels span [0, 1]", gt=0, le=1)
    iterations: int = param(8, "T, gradient steps of each copy", ge=1)
    stride: float = param(1.85, "step length in multiples of epsilon / T", gt=0)
    targets: Literal["fixed", "redrawn"] = param(
        "fixed", "a copy's target: one other class, or (a public re-implementation) any class anew at every step"
    )

    @property
    def copies(self) -> int:
        """``per_image``."""
        return self.per_image

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Draw the seeds. Raises `UsageError` without a pool."""
        super().setup(victim, context)
        self.drawn = context.generator("targets")

    def move(self, substitute: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Projected gradient descent towards random targets; see `JacobianAugmentation.move`."""
        images = images.repeat(self.per_image, 1, 1, 1)
        lowest, highest = (images - self.epsilon).clamp_min(0), (images + self.epsilon).clamp_max(1)
        targets = self._other_classes(labels.repeat(self.per_image))
        moved = images
        for _ in range(self.iterations):
            if self.targets == "redrawn":
                targets = self._draw(0, self.victim.num_classes, len(moved))
            moved = moved.detach().requires_grad_()
            loss = F.cross_entropy(substitute(moved).float(), targets, reduction="sum")
            [gradient] = torch.autograd.grad(loss, moved)
            step = self.stride * self.epsilon / self.iterations
            moved = (moved.detach() - step * gradient.sign()).clamp(lowest, highest)
        return moved

    def _other_classes(self, labels: Tensor) -> Tensor:
        """For each label, any of the other classes alike."""
        return (labels + self._draw(1, self.victim.num_classes, len(labels))) % self.victim.num_classes

    def _draw(self, low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=self.drawn, device=self.drawn.device)
