"""Label only: no probabilities are released at all."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ..components import Paper
from .base import Defense, Traits
from .rounding import TRAMER


@dataclass(kw_only=True)
class LabelOnly(Defense):
    """Release the top class as a one-hot vector; ties go to the lowest class index.

    The mandatory reference row: an attacker can reduce any argmax-preserving answer to this one, so no
    argmax-preserving defense can do better in the worst case. Omitting confidences is among the
    countermeasures that Tramèr et al. (2016) discuss. No deviations.
    """

    paper: ClassVar[Paper | None] = TRAMER
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        labels_only=True,
        preserves="The top class, and with it the accuracy; every probability is lost.",
        weakness="Labels alone make a good clone when classes are few or the attacker's images fit.",
    )

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """One-hot vectors of the top classes of ``probs`` (N, K)."""
        return F.one_hot(probs.argmax(dim=1), probs.shape[1]).to(probs.dtype)
