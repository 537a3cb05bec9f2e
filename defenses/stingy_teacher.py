"""Stingy teacher: a share of the classes, and nothing of the others."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..components import Paper, param
from .base import Defense, DefenseContext, Traits
from .topk import keep_largest


@dataclass(kw_only=True)
class StingyTeacher(Defense):
    """Release the largest probabilities of a share of all classes, renormalized; all others become zero.

    That is top-k truncation with a k that grows with the number of classes: round(share·K), but never less than two,
    because one class would be a label. With ten classes, two are kept at every share up to a quarter. The top class
    and the ratios between the kept classes are preserved.

    Ma et al., "Sparse Logits Suffice to Fail Knowledge Distillation" (PAIR^2Struct workshop at ICLR 2022). Of the
    paper we know the abstract: a small subset of the logits is kept, without retraining, and students distilled from
    it do worse. The default is from other published code for it, which keeps the 10 largest probabilities of 100
    classes and the 20 largest of 200, and renormalizes them; we could not check it against the paper's text. Dropping
    logits before the softmax and dropping probabilities after it, renormalized, are the same where a dropped logit is
    minus infinity; set to zero it would keep some mass. Deviations: the rounding and the floor of two are ours.
    """

    share: float = param(0.1, "the share of the classes that keep their probability", gt=0, le=1)

    paper: ClassVar[Paper | None] = Paper(
        key="ma2022sparse",
        title="Sparse Logits Suffice to Fail Knowledge Distillation",
        authors="Ma, Haoyu and Huang, Yifan and Tang, Hao and You, Chenyu and Kong, Deying and Xie, Xiaohui",
        year=2022,
        venue="ICLR Workshop on PAIR^2Struct",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        knob="share",
        sweep=(0.5, 0.2, 0.1, 0.05, 0.02),
        preserves="The top class and the relative probabilities of the kept classes.",
        weakness="Training on labels alone undoes it.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Turn the share into a number of classes."""
        self.count = max(2, round(self.share * context.num_classes))

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """The largest entries of each row of ``probs`` (N, K), divided by their sum."""
        return keep_largest(probs, self.count)
