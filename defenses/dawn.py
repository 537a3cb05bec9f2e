"""DAWN: a few wrong labels, chosen by a secret key, that a stolen model gives away when it repeats them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..components import Paper, param
from .base import Defense, DefenseContext, Traits
from .noise import image_digest, keyed_words, random_bits, to_uniform


@dataclass(kw_only=True)
class DAWN(Defense):
    """Answer about one query in two hundred with a wrong class: a watermark in whatever is trained on the answers.

    Whether a query is marked, and which class takes the place of the right one, are pseudorandom functions of the
    image under a secret key: whoever asks about the same image gets the same answer, and nothing is remembered.
    The probabilities of the right and the wrong class change places, so that a marked answer is as confident as
    any. Nothing is prevented: the owner, who knows the key, later asks a suspected model about marked queries, and
    `ownership_p_value` says how likely a model of other origin is to repeat so many of the wrong labels.

    Szyller et al. (ACM Multimedia 2021). Deviations: the function is a keyed 64-bit hash of the image as it looks
    in 8 bits, not HMAC-SHA256, which would be computed image by image; it is fast, but not proven to hide its key.
    Of the mapping that makes their choice robust to small changes of the image there is none: an attacker who asks
    about slightly changed copies of an image sees that one answer stands out.
    """

    rate: float = param(0.005, "share of queries that are marked", ge=0, le=1)

    paper: ClassVar[Paper | None] = Paper(
        key="szyller2021dawn",
        title="DAWN: Dynamic Adversarial Watermarking of Neural Networks",
        authors="Szyller, Sebastian and Atli, Buse Gul and Marchal, Samuel and Asokan, N.",
        year=2021,
        venue="ACM International Conference on Multimedia",
        arxiv="1906.00830",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stage="deterrent",
        knob="rate",
        sweep=(0.001, 0.005, 0.02, 0.05),
        preserves="All answers but the share that is marked: by default one in two hundred.",
        weakness="It does not prevent stealing; averaging over slightly changed copies of an image removes the marks.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Draw the key."""
        self.key = random_bits((math.prod(context.image_shape),), context.generator()) | 1

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K), with two of them exchanged where a query is marked."""
        marked, wrong = self.marks(probs, images)
        top = probs.argmax(dim=1)
        pair = torch.stack([top, torch.where(marked, wrong, top)], dim=1)
        return probs.scatter(1, pair, probs.gather(1, pair.flip(1)))

    def marks(self, probs: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which queries are marked, bool (N,), and the wrong class (N,) that each of them would get.

        Args:
            probs: the target's answers (N, K).
            images: the queries (N, C, H, W) in [0, 1].
        """
        draws = to_uniform(keyed_words(image_digest(images, self.key), 2))
        top, num_classes = probs.argmax(dim=1), probs.shape[1]
        steps = 1 + (draws[:, 1] * (num_classes - 1)).long()
        return draws[:, 0] < self.rate, (top + steps) % num_classes


def ownership_p_value(suspect: Tensor, wrong: Tensor, num_classes: int) -> float:
    """How likely a model that has nothing to do with the answers is to repeat so many wrong labels.

    Such a model gives the wrong class that the key chose with probability 1 / K at most, if it is right about some
    of the images and has no reason to prefer one wrong class; the number of matches is then binomial.

    Args:
        suspect: the suspected model's classes (M,) for marked queries.
        wrong: the wrong classes (M,) that the owner's key gives for them.
        num_classes: K.
    """
    from scipy.stats import binom

    matches = int((suspect == wrong).sum())
    return float(binom.sf(matches - 1, len(wrong), 1 / num_classes))
