"""Temperature: a control that looks like a defense and is none."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..components import param
from .base import Defense, Traits


@dataclass(kw_only=True)
class Temperature(Defense):
    """Release softmax(log p / T): flatter answers above T = 1, sharper ones below.

    The map is monotone and invertible up to float precision (take logarithms, multiply by T, apply softmax),
    so it keeps the top class and the order of all classes, and takes no information away. Zeros stay zeros.
    Far below T = 1 small probabilities vanish, and what is left is the label. Above T = 1, float32 rounds leads
    of the top class below about 1.5e-8·T away, which leaves a tie.

    A control of ours; no paper known to us offers it as a defense. If it seems to help much at T = 1 or above, the
    attacks are tuned to unit temperature: they are too weak, not defended against.
    """

    temperature: float = param(2.0, "T, the divisor of the logits", ge=0.01, le=100)

    traits: ClassVar[Traits] = Traits(
        argmax_preserving=True,
        knob="temperature",
        sweep=(1.5, 2.0, 4.0, 8.0),
        preserves="The top class and the order of all classes; confidences are no longer calibrated.",
        weakness="The map can be inverted with one number, which an attacker can fit to the answers.",
    )

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """Each row of ``probs`` (N, K) to the power of 1 / T, renormalized."""
        # Dividing by the maximum first puts the largest logarithm at zero: no row can vanish altogether.
        logits = (probs / probs.amax(dim=1, keepdim=True)).log() / self.temperature
        return logits.softmax(dim=1)
