"""Halve: say everything only half as loud."""

from dataclasses import dataclass
from typing import ClassVar

from msbench import Defense, Traits, param
from torch import Tensor


@dataclass(kw_only=True)
class Halve(Defense):
    """Mix the probabilities with the uniform vector, half and half unless told otherwise."""

    share: float = param(0.5, "share of the uniform vector in what is released", ge=0, lt=1)

    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        knob="share",
        sweep=(0.1, 0.5, 0.9),
        preserves="The order of all classes.",
        weakness="The mixture is linear and can be undone.",
    )

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) between themselves and 1/K."""
        return (1 - self.share) * probs + self.share / probs.shape[1]
