"""Averaging: ask the same thing several times."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ...components import param
from ...errors import BudgetExceeded
from .base import Recovery, RecoveryTraits


@dataclass(kw_only=True)
class Averaging(Recovery):
    """Query every image ``repeats`` times, each time charged, and average the answers.

    The standard deviation of fresh noise falls with the square root of ``repeats``; noise that is fixed per input
    is not touched. (2-QPI in ModelGuard's attack suite, Tang et al., USENIX Security 2024, which does not charge
    the repeats; here they are.) Of labels the most frequent is taken, and of several the one that was answered first.
    """

    traits: ClassVar[RecoveryTraits] = RecoveryTraits(
        restores="noise that is drawn anew for every answer", queries_per_image="repeats"
    )

    repeats: int = param(4, "times that each image is queried, all of them charged", ge=1)

    @property
    def queries_per_image(self) -> int:
        """``repeats``."""
        return self.repeats

    def query(self, images: Tensor) -> Tensor:
        """The mean of ``repeats`` released answers, or of labels the most frequent.

        Raises `BudgetExceeded` where not all repeats fit.
        """
        if len(images) > self.remaining:  # refused whole: otherwise the first repeats would be charged
            raise BudgetExceeded(
                f"asked for {len(images)} images, {self.repeats} queries each, with {self.remaining} left"
            )
        total = self.victim.query(images)
        votes = total * 1.5
        for repeat in range(1, self.repeats):
            answers = self.victim.query(images)
            total = total + answers
            votes = votes + answers * (1 + 0.5 ** (repeat + 1))  # what came earlier is worth a little more
        if self.labels_only:
            return F.one_hot(votes.argmax(dim=1), self.num_classes).float()
        return total / self.repeats
