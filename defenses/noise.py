"""Random noise: drawn anew for every answer, or fixed for each image."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..components import param
from ..errors import BadParameter
from .base import Defense, DefenseContext, Traits
from .simplex import move_within, project_to_simplex

_FLOOR = 1e-7
"""Probabilities below count as this much where noise is added to their logarithms: about float32's resolution at 1."""
_PROPOSALS = 6
"""Draws from which a gamma variate takes the first accepted one; each is accepted with a probability above 0.95."""


@dataclass(kw_only=True)
class Noise(Defense):
    """Add independent noise to every probability, or to every logit, and return to the simplex.

    On probabilities (``on``), the noisy answer is projected onto the simplex, exactly and in Euclidean distance. On
    logits, which are the logarithms of the probabilities, floored at 1e-7, softmax leads back. ``dirichlet`` adds
    nothing: the answer is drawn from the Dirichlet distribution around the clean one, whose entries p have a standard
    deviation of scale·sqrt(p·(1 - p)). With ``epsilon`` the released answer is on the way from the clean to the noisy
    one, at most so far away in L1 distance.

    By default noise is drawn anew for every answer, so that averaging over r repeats reduces its standard deviation by
    the square root of r. What is left is the mean of the projected, or softened, answers: flatter than the clean one,
    the more so the more classes there are; only ``dirichlet`` has no such bias. A budget makes one of its own: of
    skewed noise it cuts the long side more. With ``per_input`` noise is a keyed function of the image, rounded to 8
    bits: asking again gives the same answer, whatever else is in the batch, and another draw takes another image, by
    one gray level of one pixel at least. Neither kind preserves the top class.

    A baseline of msbench, not a reproduction; we know of no paper that offers Dirichlet noise as a defense of its
    own. Deviations from noise found elsewhere: Orekondy et al. (ICLR 2020) add theirs to log(p / (1 - p)); ART's
    ``GaussianNoise`` clips and divides by the sum, which is no projection, and is undefined where nothing positive
    is left.
    """

    distribution: Literal["gaussian", "laplace", "dirichlet"] = param(
        "gaussian", "gaussian, laplace with its heavier tails, or dirichlet around the clean answer"
    )
    scale: float = param(
        0.1, "standard deviation (gaussian), diversity b (laplace), or share of the largest spread (dirichlet)", gt=0
    )
    per_input: bool = param(False, "whether the noise is a fixed function of the image")
    on: Literal["probabilities", "logits"] = param("probabilities", "what noise is added to")
    epsilon: float | None = param(
        None, "the largest L1 distance between released and clean answers; none for no limit", gt=0, le=2
    )

    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stochastic=True,
        knob="scale",
        sweep=(0.02, 0.05, 0.1, 0.2, 0.5),
        preserves="Answers near the target's, and their top class, where their gaps are large beside the noise.",
        weakness="Averaging repeated answers removes the noise. What remains is the bias that the way back to the "
        "simplex and a budget give them, none for dirichlet without a budget: a fixed function of the answer, to be "
        "inverted.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distribution == "dirichlet" and self.scale >= 1:
            raise BadParameter(f"{self.label()}: scale={self.scale} is out of range: for dirichlet it must be < 1")
        if self.distribution == "dirichlet" and self.on == "logits":
            raise BadParameter(f"{self.label()}: on=logits does not fit dirichlet, which is drawn, not added")
        if self.per_input:
            self.declare(
                stochastic=False,
                weakness="Averaging over slightly changed images leaves little but the bias that the way back to the "
                "simplex gives them.",
            )

    def prepare(self, context: DefenseContext) -> None:
        """Seed the noise and draw the key of the per-input kind."""
        self.generator = context.generator()
        pixels = math.prod(context.image_shape)
        self.key = random_bits((pixels,), self.generator) | 1

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) after noise, on the simplex and within the budget."""
        clean = probs.double()
        noisy = self.noisy(clean, images)
        return (noisy if self.epsilon is None else move_within(clean, noisy, self.epsilon)).float()

    def noisy(self, clean: Tensor, images: Tensor) -> Tensor:
        """Answers (N, K), float64, as noise makes them of the clean ones, before any budget."""
        if self.distribution == "dirichlet":
            words = self.words(images, len(clean), _PER_GAMMA * clean.shape[1])
            return dirichlet(clean * (self.scale**-2 - 1), words)
        if self.on == "logits":
            return (clean.clamp_min(_FLOOR).log() + self.sample(clean, images)).softmax(dim=1)
        return project_to_simplex(clean + self.sample(clean, images))

    def sample(self, probs: Tensor, images: Tensor) -> Tensor:
        """Noise (N, K), float64, before any projection; the fresh kind advances the generator."""
        return self.scale * _QUANTILES[self.distribution](to_uniform(self.words(images, *probs.shape)))

    def words(self, images: Tensor, answers: int, each: int) -> Tensor:
        """Random 64-bit words (answers, each): fixed by the images (N, C, H, W), or fresh ones."""
        if self.per_input:
            return keyed_words(image_digest(images, self.key), each)
        return random_bits((answers, each), self.generator)


def image_digest(images: Tensor, key: Tensor) -> Tensor:
    """A keyed 64-bit hash (N,) of images (N, C, H, W) in [0, 1] as they look in 8 bits.

    The sum of pixels times random odd multipliers, modulo 2^64: integer arithmetic, so neither the batch nor
    the order of summation matters. ``key`` holds the multipliers, int64 (C·H·W,).
    """
    pixels = (images.float() * 255).round().long().flatten(1)
    return (pixels * key).sum(dim=1)


def random_bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """64 random bits each, int64, on the generator's device."""
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=generator, device=generator.device)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign bit."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def keyed_words(digest: Tensor, count: int) -> Tensor:
    """So many 64-bit words for each digest, (N, count): SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    places = torch.arange(1, count + 1, device=digest.device)
    z = digest[:, None] + places * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def to_uniform(bits: Tensor) -> Tensor:
    """The upper 52 bits as a float64 strictly between 0 and 1."""
    return (_shift(bits, 12).double() + 0.5) / 2**52


def _gaussian(uniform: Tensor) -> Tensor:
    return torch.erfinv(2 * uniform - 1) * math.sqrt(2)


def _laplace(uniform: Tensor) -> Tensor:
    centered = uniform - 0.5
    return -centered.sign() * torch.log1p(-2 * centered.abs())


_QUANTILES = {"gaussian": _gaussian, "laplace": _laplace}


_PER_GAMMA = 2 * _PROPOSALS + 1
"""Random words that one gamma variate takes."""


def dirichlet(concentration: Tensor, words: Tensor) -> Tensor:
    """Draws (N, K) from Dirichlet distributions, float64; entries without concentration are zero.

    They are gamma variates over their sum, of shapes raised by one (a variate of shape a is one of shape a + 1 times
    a uniform to the power of 1 / a), in logarithms: with many classes, most shapes are far below one, and most
    variates below what floating point can hold.

    Args:
        concentration: (N, K), float64, non-negative, each row with something positive.
        words: random 64-bit words (N, 13·K).
    """
    uniform = to_uniform(words).view(len(words), _PER_GAMMA, -1)
    shrink = uniform[:, -1].log() / concentration  # minus infinity without concentration
    log_gammas = log_gamma_variate(concentration + 1, uniform[:, :-1])
    return (log_gammas + shrink).softmax(dim=1)


def log_gamma_variate(shape: Tensor, uniform: Tensor) -> Tensor:
    """Logarithms of gamma variates (N, K) of shapes (N, K) of at least one, by rejection.

    Marsaglia and Tsang, "A simple method for generating gamma variables" (ACM Transactions on Mathematical Software,
    2000): a cubed, shifted normal is accepted with a probability above 0.95. Where all of six proposals are
    rejected, less than once in ten million times, the middle of the normal stands for a seventh.

    Args:
        shape: (N, K), float64.
        uniform: (N, 12, K), strictly between 0 and 1.
    """
    location = (shape - 1 / 3).unsqueeze(1)
    normal, chance = _gaussian(uniform[:, :_PROPOSALS]), uniform[:, _PROPOSALS:]
    cube = (1 + normal / (9 * location).sqrt()).clamp_min(0) ** 3
    log_cube = cube.log()
    accepted = chance.log() < normal.square() / 2 + location * (1 - cube + log_cube)
    place = accepted.int().argmax(dim=1, keepdim=True)  # of the first
    first = log_cube.gather(1, place).where(accepted.gather(1, place), 0)
    return (location.log() + first).squeeze(1)
