"""Top-k truncation: the tail of the answer is withheld."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..components import Paper, param
from ..errors import BadParameter
from .base import Defense, DefenseContext, Traits
from .mad import OREKONDY


@dataclass(kw_only=True)
class TopK(Defense):
    """Release the k largest probabilities, renormalized; all others become zero.

    Exactly k classes are kept: among equal probabilities the lower class index goes first, on every device.
    The top class and the order of the kept classes are preserved, and so are the ratios between their
    probabilities. With k = 1 the answer is one-hot, and declared as such.

    Top-k truncation, a passive baseline in the code of Orekondy et al. (ICLR 2020). Deviation: their code
    leaves the kept entries unnormalized; here every released answer is on the simplex.
    """

    k: int = param(3, "how many classes keep their probability", ge=1)

    paper: ClassVar[Paper | None] = OREKONDY
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        knob="k",
        sweep=(10, 5, 3, 2, 1),
        preserves="The top class and the relative probabilities of the k best classes.",
        weakness="Training on labels alone undoes it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.declare(labels_only=self.k == 1)

    def prepare(self, context: DefenseContext) -> None:
        """Raises `BadParameter` if the target has fewer than k classes."""
        if self.k > context.num_classes:
            raise BadParameter(
                f"{self.label()}: k={self.k} exceeds the target's {context.num_classes} classes: "
                f"choose 1 to {context.num_classes}"
            )

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """The k largest of each row of ``probs`` (N, K), divided by their sum."""
        return keep_largest(probs, self.k)


def keep_largest(probs: Tensor, count: int) -> Tensor:
    """Each row of ``probs`` (N, K) with all but its ``count`` largest entries zero, divided by its sum.

    Among equal entries the lower class index goes first.
    """
    kept = probs.sort(dim=1, descending=True, stable=True).indices[:, :count]
    truncated = torch.zeros_like(probs).scatter(1, kept, probs.gather(1, kept))
    return truncated / truncated.sum(dim=1, keepdim=True)
