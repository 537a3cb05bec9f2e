"""EDM: one of several networks answers, and on unrelated images they disagree."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..targets.datasets.base import Images
from ..targets.training import train
from .base import Defense, DefenseContext, Traits
from .ini import endless
from .trained import trained

_ENOUGH = 10
"""Classes with which the hash needs no others; the published code has ten."""
_TURNS = 4


@dataclass(kw_only=True)
class EDM(Defense):
    """Serve an ensemble of which one member answers each image, chosen by a hash; on unrelated images they disagree.

    Members have the target's architecture. Together they bring down the sum of their cross-entropies on the target's
    data and, times ``diversity``, their coherence on unrelated images: the largest cosine between two members'
    answers, on average over images. The hash is a further network, trained to classify the unrelated images by their
    own labels, modulo M. For an image that it gives class c with the probability p, member number
    levels·c + floor(levels·(M·p - 1) / (M - 1)), modulo the number of members, answers; M is the number of these
    classes, and never more than the target's. So the answer is a fixed function of the image, and one that jumps from
    region to region of the images' space.

    Kariyappa, Prakash and Qureshi (ICLR 2021). No official code is known to us, and of the paper we know the
    abstract: an ensemble trained to answer unrelated images differently, of which different members serve different
    queries. Five members, the coherence, the hash's formula and its two levels come from code that others published
    to attack the defense; there M is always 10, and the hash is a small network of three convolutions. Ours: the
    weight of the coherence, the target's architecture for the hash, and the training (as the target's: AdamW, one
    cycle, the same number of epochs; for the hash as many steps). Unrelated images are those that the target's data
    set declares as its pool, with which pool attacks query: name other images to keep the two apart. Where these have
    fewer than ten classes, the hash also tells their quarter turns apart, which makes four classes of each: with
    two, hardly more than one member would ever answer.
    """

    members: int = param(5, "how many networks the ensemble has", ge=2)
    diversity: float = param(1.0, "weight of the members' coherence on unrelated images", ge=0)
    levels: int = param(2, "how many levels of confidence the hash tells apart in each of its classes", ge=1)
    unrelated: str = param("pool", "data set of unrelated images; pool is the one that the target's declares")

    paper: ClassVar[Paper | None] = Paper(
        key="kariyappa2021protecting",
        title="Protecting DNNs from Theft using an Ensemble of Diverse Models",
        authors="Kariyappa, Sanjay and Prakash, Atul and Qureshi, Moinuddin K.",
        year=2021,
        venue="International Conference on Learning Representations",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        needs=("surrogate", "data", "auxiliary", "queries"),
        stage="training",
        knob="diversity",
        sweep=(0.1, 0.3, 1.0, 3.0, 10.0),
        preserves="Answers to images like the target's own, where all members are trained to agree with the labels.",
        weakness="Averaging over slightly changed images meets several members, and images like the target's own "
        "are answered alike by all. By default it is trained for the pool that knockoff queries with, and only other "
        "queries tell what it is worth.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Train the members, and the hash that chooses among them."""
        data, unrelated = context.data(), context.auxiliary(self.unrelated)

        def fit_members(members: nn.Module) -> None:
            others = endless(unrelated, context.recipe.batch, torch.Generator().manual_seed(context.stream("others")))
            train(
                members,
                data,
                context.recipe,
                seed=context.stream("edm data"),
                device=context.device,
                objective=lambda images, labels: self.loss(members, images, labels, next(others)),
            )

        # As many steps as the members take, however many images there are.
        epochs = max(1, round(context.recipe.epochs * len(data) / len(unrelated)))
        recipe = replace(context.recipe, epochs=epochs)
        classes = _classes(unrelated, recipe.batch)
        turns = _TURNS if classes < _ENOUGH else 1
        classes = min(classes * turns, context.num_classes)  # the architecture tells no more apart

        def fit_hash(network: nn.Module) -> None:
            chance = torch.Generator(context.device).manual_seed(context.stream("edm turns"))

            def objective(images: Tensor, labels: Tensor) -> Tensor:
                turn = torch.randint(turns, labels.shape, generator=chance, device=labels.device)
                return F.cross_entropy(network(turned(images, turn)), (labels * turns + turn) % classes)

            train(
                network,
                unrelated,
                recipe,
                seed=context.stream("edm hash data"),
                device=context.device,
                objective=objective,
            )

        fresh = nn.ModuleList(context.new_surrogate(context.stream(f"edm {i}")) for i in range(self.members))
        used = [data, unrelated]
        members = trained(fresh, fit_members, defense=self, context=context, data=used, part="members")
        chooser = context.new_surrogate(context.stream("edm hash"))
        chooser = trained(chooser, fit_hash, defense=self, context=context, data=used, part="hash")
        self.network = Ensemble(members, chooser, classes=classes, levels=self.levels)

    def loss(self, members: nn.Module, images: Tensor, labels: Tensor, unrelated: Tensor) -> Tensor:
        """The members' objective (a scalar) for images (N, C, H, W), labels (N,), and unrelated images (M, C, H, W)."""
        both = torch.cat([images, unrelated])
        logits = torch.stack([member(both) for member in members.children()])
        known, unknown = logits[:, : len(images)], logits[:, len(images) :]
        wrong = torch.stack([F.cross_entropy(each, labels) for each in known]).sum()
        return wrong + self.diversity * coherence(unknown.softmax(dim=2)).mean()

    def deploy(self, target: nn.Module) -> nn.Module:
        """The ensemble behind its hash."""
        return self.network

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) as they are: the member that gave them is the defense."""
        return probs


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Square images (N, C, H, H), each turned by so many quarters (N,)."""
    views = torch.stack([images.rot90(quarters, (2, 3)) for quarters in range(_TURNS)])
    return views[turns, torch.arange(len(turns), device=turns.device)]


def coherence(answers: Tensor) -> Tensor:
    """The largest cosine between two members' answers, (N,) for answers (members, N, K)."""
    unit = F.normalize(answers, dim=2)
    first, second = torch.triu_indices(len(answers), len(answers), offset=1)
    return (unit[first] * unit[second]).sum(dim=2).amax(dim=0)


class Ensemble(nn.Module):
    """Networks of which one answers each image: of a batch, every member sees its own share only.

    Args:
        members: the networks, from images (N, C, H, W) to logits (N, K).
        chooser: the hash's network, whose first ``classes`` logits are used.
        classes: M, at least 2.
        levels: how many levels of confidence count.
    """

    def __init__(self, members: nn.Module, chooser: nn.Module, *, classes: int, levels: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members.children())
        self.chooser = chooser
        self.classes = classes
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) for images (N, C, H, W) in [0, 1], each those of one member."""
        chosen = self.choose(images)
        shares = [(chosen == i).nonzero().squeeze(1) for i in range(len(self.members))]
        pairs = zip(self.members, shares, strict=True)
        logits = [member(images[rows]) for member, rows in pairs if len(rows)]  # not all networks take empty batches
        return torch.cat(logits)[torch.cat(shares).argsort()]

    def choose(self, images: Tensor) -> Tensor:
        """The member (N,) that answers each image (N, C, H, W)."""
        logits = self.chooser(images)[:, : self.classes]
        confidence, label = logits.double().softmax(dim=1).max(dim=1)
        share = (self.classes * confidence - 1) / (self.classes - 1)
        chosen: Tensor = (self.levels * label + (self.levels * share).floor().long()) % len(self.members)
        return chosen


def _classes(images: Images, batch: int) -> int:
    """How many classes the labels of a set of images have."""
    return 1 + max(int(labels.max()) for _, labels in images.batches(batch))
