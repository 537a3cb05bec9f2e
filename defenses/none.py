"""No defense: the reference that everything else is measured against."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Defense, Traits


@dataclass(kw_only=True)
class NoDefense(Defense):
    """Release the target's probabilities as they are.

    A control of ours. An attack that does not reach its reference strength here is broken, and nothing
    measured with it against another defense counts.
    """

    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        preserves="Everything: an honest user gets the target's own answers.",
        weakness="Nothing stands in the way of any attack.",
    )

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """The probabilities (N, K), unchanged."""
        return probs
