"""Random noise: drawn anew for every answer, or fixed for each image."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..components import param
from .base import Defense, DefenseContext, Traits
from .simplex import project_to_simplex


@dataclass(kw_only=True)
class Noise(Defense):
    """Add independent noise to every probability and project the sum back onto the simplex.

    The projection is the exact Euclidean one. By default noise is drawn anew for every answer, so that
    averaging over r repeats reduces its standard deviation by the square root of r. With ``per_input`` it is
    a keyed function of the image, rounded to 8 bits: asking again gives the same answer, whatever else is in
    the batch, and another draw takes another image, by one gray level of one pixel at least. Neither kind
    preserves the top class.

    A baseline of msbench, not a reproduction. Deviations from noise found elsewhere: Orekondy et al. (ICLR
    2020) add theirs to log(p / (1 - p)); ART's ``GaussianNoise`` clips and divides by the sum, which is no
    projection, and is undefined where nothing positive is left.
    """

    distribution: Literal["gaussian", "laplace"] = param("gaussian", "gaussian, or laplace with its heavier tails")
    scale: float = param(0.1, "standard deviation (gaussian) or diversity b (laplace) of the noise", gt=0)
    per_input: bool = param(False, "whether the noise is a fixed function of the image")

    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stochastic=True,
        knob="scale",
        sweep=(0.02, 0.05, 0.1, 0.2, 0.5),
        preserves="Answers that are near the target's on average; confident answers keep their top class.",
        weakness="Averaging repeated answers removes it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_input:
            self.declare(
                stochastic=False,
                weakness="Averaging over slightly changed images removes most of it.",
            )

    def prepare(self, context: DefenseContext) -> None:
        """Seed the noise and draw the key of the per-input kind."""
        self.generator = context.generator()
        pixels = math.prod(context.image_shape)
        self.key = _random_bits((pixels,), self.generator) | 1

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) plus noise, projected onto the simplex."""
        return project_to_simplex(probs.double() + self.sample(probs, images)).float()

    def sample(self, probs: Tensor, images: Tensor) -> Tensor:
        """Noise (N, K), float64, before any projection; the fresh kind advances the generator."""
        if self.per_input:
            bits = _mix(image_digest(images, self.key), probs.shape[1])
        else:
            bits = _random_bits(tuple(probs.shape), self.generator)
        return self.scale * _QUANTILES[self.distribution](_uniform(bits))


def image_digest(images: Tensor, key: Tensor) -> Tensor:
    """A keyed 64-bit hash (N,) of images (N, C, H, W) in [0, 1] as they look in 8 bits.

    The sum of pixels times random odd multipliers, modulo 2^64: integer arithmetic, so neither the batch nor
    the order of summation matters. ``key`` holds the multipliers, int64 (C·H·W,).
    """
    pixels = (images.float() * 255).round().long().flatten(1)
    return (pixels * key).sum(dim=1)


def _random_bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=generator, device=generator.device)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign bit."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(digest: Tensor, num_classes: int) -> Tensor:
    """One 64-bit word for each digest and class (N, K): SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    classes = torch.arange(1, num_classes + 1, device=digest.device)
    z = digest[:, None] + classes * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _uniform(bits: Tensor) -> Tensor:
    """The upper 52 bits as a float64 strictly between 0 and 1."""
    return (_shift(bits, 12).double() + 0.5) / 2**52


def _gaussian(uniform: Tensor) -> Tensor:
    return torch.erfinv(2 * uniform - 1) * math.sqrt(2)


def _laplace(uniform: Tensor) -> Tensor:
    centered = uniform - 0.5
    return -centered.sign() * torch.log1p(-2 * centered.abs())


_QUANTILES = {"gaussian": _gaussian, "laplace": _laplace}
