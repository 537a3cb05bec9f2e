"""HODA: an account's queries are an attack's if they are of another hardness than the data."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..components import Paper, param
from ..targets.training import train
from .base import DefenseContext, Traits
from .detection import FORGETS, Account, Detector, limit_for, split
from .trained import trained

SEQUENCES = 10_000
"""Made-up benign sequences on which the limit is fitted."""


@dataclass(kw_only=True)
class HODA(Detector):
    """Compare how hard an account's queries are, as a histogram, with how hard the data are.

    A query's hardness is the first of several checkpoints of a network's training from which on the predicted class
    stays what it is at the end. Every ``num_s`` queries of an account make a histogram; its Pearson distance
    from that of the data, one minus their correlation, is the suspicion, which holds until the next is full.

    Sadeghzadeh et al. (arXiv 2106.11424). Deviations: the target's own checkpoints are not kept, so that a network of
    its architecture is trained as it was, in ``checkpoints`` equally long parts of whole epochs (11 epochs for mnist,
    whose recipe has four), on four fifths of the defender's images. The fifth that it has not seen gives the data's
    histogram, and the limit: one in a thousand benign sequences, drawn from that fifth with repetition, exceeds it.
    Histograms do not overlap. What is kept of an account are the fewer than ``num_s`` hardnesses of an unfinished one.
    """

    num_s: int = param(100, "queries that make one histogram", ge=2)
    checkpoints: int = param(11, "checkpoints of the training, the last included", ge=3)
    false_positives: float = param(0.001, "share of benign sequences that may be flagged", gt=0, lt=1)

    paper: ClassVar[Paper | None] = Paper(
        key="sadeghzadeh2021hoda",
        title="HODA: Hardness-Oriented Detection of Model Extraction Attacks",
        authors="Sadeghzadeh, Amir Mahdi and others",
        year=2021,
        arxiv="2106.11424",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stateful=True,
        needs=("account", "data", "surrogate"),
        stage="detection",
        knob="false_positives",
        sweep=(0.001, 0.003, 0.01, 0.03, 0.1),
        preserves="Answers to accounts whose queries are as hard as the data.",
        weakness="Benign padding dilutes the histogram; an account that stops short of the first full one is not seen. "
        f"{FORGETS}, and begins anew.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Train the network, keep its checkpoints, and fit the limit on what it has not seen."""
        super().prepare(context)
        seen, unseen = split(context)
        fresh = [context.new_surrogate(context.stream("hardness")) for _ in range(self.checkpoints)]

        def fit(networks: nn.Module) -> None:
            *earlier, last = networks.children()
            part = math.ceil(context.recipe.epochs / self.checkpoints)

            def keep(epoch: int, epochs: int, loss: float) -> None:
                if epoch % part == 0 and epoch < epochs:
                    earlier[epoch // part - 1].load_state_dict(last.state_dict())

            recipe = replace(context.recipe, epochs=part * self.checkpoints)
            seed = context.stream("hardness data")
            train(last, seen, recipe, seed=seed, device=context.device, on_epoch=keep)

        self.networks = trained(
            nn.ModuleList(fresh),
            fit,
            defense=type(self)(checkpoints=self.checkpoints),  # nothing else changes the networks
            context=context,
            data=[seen],
        )
        hardness = torch.cat([self.hardness(images) for images, _ in unseen.batches(1024)])
        self.reference = self.histograms(hardness[None])
        own = torch.Generator().manual_seed(context.stream("benign sequences"))
        draws = torch.randint(len(hardness), (SEQUENCES, self.num_s), generator=own)
        benign = self.histograms(hardness[draws.to(hardness.device)])
        self.limit = limit_for(pearson_distance(benign, self.reference), self.false_positives)

    def newcomer(self) -> Account:
        """No hardness yet, and no suspicion."""
        device = self.reference.device
        return {
            "hardness": torch.zeros(0, dtype=torch.long, device=device),
            "suspicion": torch.zeros(1, dtype=torch.float64, device=device),
        }

    def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
        """The distance (N,) of the account's latest full histogram from the data's; 0 before there is one."""
        waiting = len(account["hardness"])
        hardness = torch.cat([account["hardness"], self.hardness(images)])
        full = len(hardness) // self.num_s
        sequences = hardness[: full * self.num_s].view(full, self.num_s)
        distances = torch.cat([account["suspicion"], pearson_distance(self.histograms(sequences), self.reference)])
        latest = torch.arange(waiting + 1, len(hardness) + 1, device=hardness.device) // self.num_s
        account["hardness"] = hardness[full * self.num_s :].clone()
        account["suspicion"] = distances[-1:].clone()
        return distances[latest]

    @torch.no_grad()
    def hardness(self, images: Tensor) -> Tensor:
        """From which checkpoint on, counted from 0, the predicted classes of images (N, C, H, W) stay the same."""
        pixels = images.float()
        return settled(torch.stack([network(pixels).argmax(dim=1) for network in self.networks.children()]))

    def histograms(self, hardness: Tensor) -> Tensor:
        """Counts (S, checkpoints), float64, of sequences of hardnesses (S, L)."""
        zeros = torch.zeros(len(hardness), self.checkpoints, dtype=torch.float64, device=hardness.device)
        return zeros.scatter_add(1, hardness, torch.ones_like(hardness, dtype=torch.float64))


def settled(classes: Tensor) -> Tensor:
    """The first checkpoint (N,) from which on the classes (checkpoints, N) are the last one's."""
    unsettled_until = torch.arange(1, len(classes) + 1, device=classes.device)[:, None]
    return ((classes != classes[-1]) * unsettled_until).amax(dim=0)


def pearson_distance(histograms: Tensor, reference: Tensor) -> Tensor:
    """One minus the correlation of each row (S, B) with the reference (1, B); 1 where a row has no variance."""
    a = histograms - histograms.mean(dim=1, keepdim=True)
    b = reference - reference.mean()
    norms = a.norm(dim=1) * b.norm()
    correlation: Tensor = (a * b).sum(dim=1) / norms.clamp_min(1e-12)
    return 1 - correlation
