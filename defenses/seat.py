"""SEAT: an account that keeps asking about nearly the same image is an attack's."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..errors import BadParameter
from ..targets.training import Recipe, augment, train
from .base import DefenseContext, Traits
from .detection import FORGETS, Account, Detector, limit_for, split
from .trained import trained

_CHUNK = 256
"""Queries that are compared with each other at once."""


@dataclass(kw_only=True)
class SEAT(Detector):
    """Count the queries of an account that an encoder finds similar to an earlier one; fifty are an attack.

    The encoder is the target without its last layer, trained on: an image and a changed copy of it are to be near each
    other, an image and another one at least ``margin`` apart. The copies are shifted ones, and, which makes it robust,
    adversarial ones, moved within an L-infinity ball to where the encoder finds them least alike. A query nearer to a
    kept one than the limit makes a pair, and is not kept itself. The suspicion is the number of pairs; the account is
    canceled, and all that it asks from there on flagged, at the given number.

    Zhang, Chen and Wagner (AISec 2021). Loss, margin (the root of 10), single nearest neighbor, number of pairs,
    ten epochs, and the quantile to which the limit is fitted are read from their released code, in part experimental,
    not from the paper. Deviations: four fifths of the defender's images train the encoder, and the limit is fitted on
    the fifth that it has not seen, each image compared with the others; theirs is fitted on the training images. The
    adversarial copies climb the encoder's own distance, theirs the cross-entropy to the labels; the optimizer and its
    schedule are those that the target was trained with. Radius and steps of the adversarial copies, and shifts as the
    only harmless change, are ours.

    With N images held out, rates below 3 / (N + 1) cannot be told apart: the limit is then the smallest distance,
    which the two nearest have in common. On digits, where N is 269, so it is for the three finest rates of the sweep.
    The newest ``memory`` queries of an account are kept, as embeddings, and of a batch up to 255 more; the rate is
    that of a memory of about N queries, and the longer the memory, the likelier a benign query has a near neighbor in
    it.
    """

    pairs: int = param(50, "similar queries at which an account is canceled", ge=1)
    false_positives: float = param(0.001, "share of benign queries that may be found similar to another", gt=0, lt=1)
    margin: float = param(10**0.5, "distance from each other that the encoder gives to different images", gt=0)
    epsilon: float = param(0.03, "L-infinity radius of adversarial copies, in pixel units", gt=0, le=1)
    steps: int = param(5, "gradient steps for each adversarial copy", ge=1)
    epochs: int = param(10, "passes over the data to train the encoder", ge=1)
    memory: int = param(10_000, "queries of an account that are kept", ge=1)

    paper: ClassVar[Paper | None] = Paper(
        key="zhang2021seat",
        title="SEAT: Similarity Encoder by Adversarial Training for Detecting Model Extraction Attack Queries",
        authors="Zhang, Zhanyuan and Chen, Yizheng and Wagner, David",
        year=2021,
        venue="ACM Workshop on Artificial Intelligence and Security",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stateful=True,
        needs=("account", "data", "features"),
        stage="detection",
        knob="false_positives",
        sweep=(0.001, 0.003, 0.01, 0.03, 0.1),
        preserves="Answers to accounts whose queries differ from each other.",
        weakness="Queries that the encoder finds far apart pass, as a large pool's may be; so do many accounts. With N "
        "images held out to fit the limit, all rates below 3 / (N + 1) are one (0.011 on digits), and honest accounts "
        "that ask more than N times can have more pairs than the rate says. "
        f"{FORGETS}, pairs and all.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Train the encoder, and fit the limit of distance. Raises `BadParameter` for a target without a last layer."""
        super().prepare(context)
        self.limit = self.pairs - 0.5
        seen, unseen = split(context)
        recipe = replace(context.recipe, epochs=self.epochs)
        trainer = replace(self, pairs=50, false_positives=0.001, memory=1, action="none")  # these change no weight
        self.encoder = trained(
            without_head(context.target()),
            lambda network: train(
                network,
                seen,
                recipe,
                seed=context.stream("similarity data"),
                device=context.device,
                objective=lambda images, _: self.loss(network, images, context),
            ),
            defense=trainer,
            context=context,
            data=[seen],
        )
        codes = torch.cat([self.encode(images) for images, _ in unseen.batches(1024)])
        nearest = torch.cat([_others(codes, start) for start in range(0, len(codes), 1024)])
        self.similar = -limit_for(-nearest, self.false_positives)

    def loss(self, encoder: nn.Module, images: Tensor, context: DefenseContext) -> Tensor:
        """The encoder's objective (a scalar) on a batch (N, C, H, W); draws from torch's global random state."""
        reach = max(1, images.shape[-1] // 10)
        seed = int(torch.randint(2**31, ()))
        own = torch.Generator(images.device).manual_seed(seed)
        shifted = augment(images, Recipe(epochs=1, batch=1, lr=1.0, weight_decay=0.0, shift=reach), own)
        adversarial = self.least_alike(encoder, images, own)
        codes = encoder(torch.cat([images, shifted, adversarial]))
        original, copy_of_it, disguised = codes.float().flatten(1).chunk(3)
        apart = (original - original.roll(1, dims=0)).norm(dim=1)
        near = (original - copy_of_it).square().sum(1) + (original - disguised).square().sum(1)
        loss: Tensor = (near + F.relu(self.margin**2 - apart.square())).mean()
        return loss

    def least_alike(self, encoder: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Copies within ``epsilon`` that the encoder finds as unlike their originals as gradient steps lead to."""
        with torch.no_grad():
            original = encoder(images).flatten(1)
        start = torch.rand(images.shape, generator=generator, device=images.device)
        copies = (images + self.epsilon * (2 * start - 1)).clamp(0, 1)
        for _ in range(self.steps):
            copies.requires_grad_(True)
            distance = (encoder(copies).flatten(1) - original).square().sum()
            (slope,) = torch.autograd.grad(distance, copies)
            moved = copies.detach() + 2 * self.epsilon / self.steps * slope.sign()
            copies = torch.minimum(torch.maximum(moved, images - self.epsilon), images + self.epsilon).clamp(0, 1)
        return copies

    def newcomer(self) -> Account:
        """No query kept, no pair."""
        parameter = next(self.encoder.parameters())
        return {
            "codes": torch.zeros(0, 0, device=parameter.device),
            "pairs": torch.zeros((), dtype=torch.long, device=parameter.device),
        }

    def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
        """The account's pairs (N,) after each query."""
        return torch.cat([self._chunk(part, account) for part in torch.split(self.encode(images), _CHUNK)])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The embeddings (N, D) of images (N, C, H, W)."""
        codes: Tensor = self.encoder(images.float())
        return codes.float().flatten(1)

    def _chunk(self, codes: Tensor, account: Account) -> Tensor:
        known = account["codes"] if len(account["codes"]) else codes[:0]
        old = (_distances(codes, known) < self.similar).any(dim=1)
        alike = (_distances(codes, codes) < self.similar).tril(-1)
        paired = first_come(old, alike)
        account["codes"] = torch.cat([known, codes[~paired]])[-self.memory :].clone()
        counts: Tensor = account["pairs"] + paired.long().cumsum(0)
        account["pairs"] = counts[-1].clone()
        return counts


def first_come(old: Tensor, alike: Tensor) -> Tensor:
    """Which of N queries are paired, bool (N,): with a known one, or with one before them that is not paired itself.

    Each pass settles at least one more query for good, and in practice nearly all at once.

    Args:
        old: bool (N,), which are similar to one that was kept before.
        alike: bool (N, N), strictly lower triangular: which are similar to which before them.
    """
    paired = old
    while True:
        settled = old | (alike & ~paired).any(dim=1)
        if torch.equal(settled, paired):
            return paired
        paired = settled


def without_head(target: nn.Module) -> nn.Module:
    """A trainable copy of a network whose last linear layer lets its input through."""
    encoder = copy.deepcopy(target).requires_grad_(True)
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BadParameter("seat takes the features before the target's last linear layer, and it has none")
    parent, _, leaf = linear[-1].rpartition(".")
    setattr(encoder.get_submodule(parent), leaf, nn.Identity())
    return encoder


def _distances(codes: Tensor, known: Tensor) -> Tensor:
    # Not by matrix products, which leave a repeated image at a distance of rounding errors.
    return torch.cdist(codes, known, compute_mode="donot_use_mm_for_euclid_dist")


def _others(codes: Tensor, start: int) -> Tensor:
    """Distances of codes from ``start`` on, at most 1024 of them, from the nearest other one (N, D)."""
    part = codes[start : start + 1024]
    distances = _distances(part, codes)
    distances[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
    return distances.amin(dim=1)
