"""ActiveThief: let the clone choose which images of a pool are worth a query."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..components import Paper, param
from ..targets.blackbox import Victim
from .base import AttackContext, AttackTraits, StepReport
from .learning import OptimizerName, Schedule
from .transfer_set import PoolAttack

MEASURED_AT_ONCE = 256
"""Images of the pool that the clone is shown in one batch, before it picks."""

Strategy = Literal["uncertainty", "k_center", "dfal", "dfal_k_center"]


@dataclass(kw_only=True)
class ActiveThief(PoolAttack):
    """Query a random seed of a pool, and then, round after round, the images that a clone trained so far picks.

    ``uncertainty`` picks the images of highest entropy; ``k_center`` those whose predicted probabilities are
    farthest from all that were asked about or picked before (greedily); ``dfal`` those that DeepFool takes across
    the clone's decision boundary by the shortest way; ``dfal_k_center`` picks by ``k_center`` among a shortlist of
    ``dfal`` (Pal, Gupta, Shukla, Kanade, Shevade and Ganapathy, AAAI 2020, doi 10.1609/aaai.v34i01.5432). A part of
    the budget goes to images for validation, at random and charged; each clone is trained from scratch, stopped
    when it no longer improves on them, and taken where it was best.

    Deviations: the clone has its own architecture's regularization instead of the paper's dropout; it learns from
    the answers as they are, probabilities or labels; validation is by agreement with the victim's top class; the
    distances of ``k_center`` are between the clone's predictions, for images asked about too; an image that
    DeepFool does not get across counts as farthest. Where the pool is smaller than the budget, shares are of the
    pool.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(
        threat_model="pool", access="either", queries_per_step="7 % of the budget"
    )
    paper: ClassVar[Paper] = Paper(
        key="pal2020activethief",
        title="ActiveThief: Model Extraction Using Active Learning and Unannotated Public Data",
        authors=(
            "Pal, Soham and Gupta, Yash and Shukla, Aditya and Kanade, Aditya and Shevade, Shirish and Ganapathy, Vinod"
        ),
        year=2020,
        venue="AAAI Conference on Artificial Intelligence",
    )

    epochs: int = param(1000, "passes over the transfer set for each clone, at most", ge=1)
    batch: int = param(150, "images per training batch", ge=1)
    optimizer: OptimizerName = param("adam", "the clone's optimizer: sgd (momentum 0.9) or adam")
    lr: float = param(1e-3, "the clone's learning rate at the start", gt=0)
    weight_decay: float = param(1e-3, "the clone's weight decay", ge=0)
    schedule: Schedule = param("constant", "decay of the rate over the epochs: multistep, cosine, constant")
    strategy: Strategy = param("dfal_k_center", "what is picked: uncertainty, k_center, dfal, dfal_k_center")
    rounds: int = param(10, "how often images are picked, after the seed", ge=1)
    seed_share: float = param(0.1, "share of the budget that the random seed gets", gt=0, lt=1)
    validation_share: float = param(0.2, "share of the budget that validation gets", ge=0, lt=0.9)
    patience: int = param(100, "epochs without improvement after which training stops", ge=1)
    deepfool_steps: int = param(50, "steps of DeepFool, at most", ge=1)
    shortlist: float = param(1.0, "images that dfal leaves to k_center, as a share of the budget", gt=0)

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Shuffle the pool and divide the budget. Raises `UsageError` without a pool."""
        super().setup(victim, context)
        total = len(self.transfer_set.places)
        self.held_out = int(self.validation_share * total)
        self.seed_size = max(1, int(self.seed_share * total))
        self.picked_a_round = max(1, -((self.held_out + self.seed_size - total) // self.rounds))

    def step(self) -> StepReport:
        """Query images for validation and the random seed, or, in later steps, the images of one round."""
        started = len(self.transfer_set) > 0
        count = self.affordable(self.picked_a_round if started else self.held_out + self.seed_size)
        if count:
            places = self._pick(count) if started else self.transfer_set.order[:count]
            for part in torch.split(places, self.query_batch):
                self.transfer_set.ask(self.victim, part)
        return self.report()

    def targets(self) -> Tensor:
        """The answers."""
        return self.transfer_set.answers

    def clone(self) -> nn.Module:
        """A clone trained from scratch, as it was when it agreed best with the validation answers."""
        network = self.context.new_clone("student 0")
        members = torch.arange(min(self.held_out, len(self.transfer_set)), len(self.transfer_set))
        if len(members) == 0:
            return network.eval()
        best, best_epoch, kept = -1.0, 0, network
        for epoch in self.training(network, members):
            agreement = self._agreement(network)
            if agreement > best or self.held_out == 0:
                best, best_epoch, kept = agreement, epoch, copy.deepcopy(network)
            elif epoch - best_epoch >= self.patience:
                break
        return kept.eval()

    @torch.no_grad()
    def _agreement(self, network: nn.Module) -> float:
        """Share of the validation images on which the network has the victim's top class; 0 where there are none."""
        network.eval()
        places = torch.arange(self.held_out, device=self.context.device)
        same = [
            network(self.transfer_set.images(part)).argmax(dim=1) == self.transfer_set.answers[part].argmax(dim=1)
            for part in torch.split(places, MEASURED_AT_ONCE)
            if len(part)
        ]
        return float(torch.cat(same).float().mean()) if same else 0.0

    # ---------------------------------------------------------------------------------------- what to ask next

    def _pick(self, count: int) -> Tensor:
        """Places (N,) of the ``count`` images that the strategy picks with a clone trained on all answers so far."""
        network, left = self.clone(), self._left()
        # Distances to a boundary are differences of logits: more than bf16 could hold.
        with torch.autocast(self.context.device.type, enabled=False):
            if self.strategy == "uncertainty":
                entropy = torch.special.entr(self._predict(network, left)).sum(dim=1)
                return left[entropy.topk(count).indices]
            if self.strategy == "dfal":
                return left[self._distances(network, left).topk(count, largest=False).indices]
            if self.strategy == "dfal_k_center":
                size = min(len(left), max(count, int(self.shortlist * len(self.transfer_set.places))))
                left = left[self._distances(network, left).topk(size, largest=False).indices]
            centers = self._predict(network, self.transfer_set.places[: len(self.transfer_set)])
            return left[k_center(self._predict(network, left), centers, count)]

    def _left(self) -> Tensor:
        """The places of all images that were not asked about, shuffled, so that equals are taken at random."""
        order = self.transfer_set.order.to(self.context.device)
        asked = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        asked[self.transfer_set.places[: len(self.transfer_set)]] = True
        return order[~asked[order]]

    @torch.no_grad()
    def _predict(self, network: nn.Module, places: Tensor) -> Tensor:
        """The network's probabilities (N, K) for images at places (N,)."""
        return self._scan(lambda images: network(images).float().softmax(dim=1), places)

    def _distances(self, network: nn.Module, places: Tensor) -> Tensor:
        """How far images at places (N,) are from the network's decision boundary: (N,)."""
        return self._scan(lambda images: deepfool(network, images, steps=self.deepfool_steps), places)

    def _scan(self, measure: Callable[[Tensor], Tensor], places: Tensor) -> Tensor:
        batches = self.transfer_set.pool.batches(MEASURED_AT_ONCE, order=places)
        return torch.cat([measure(images) for images, _ in batches])


@torch.no_grad()
def k_center(points: Tensor, centers: Tensor, count: int) -> Tensor:
    """Greedy k-center: indices (count,) of points (N, D), each the farthest from its nearest center.

    Centers are those given (M, D), and all points chosen before. Distances are Euclidean. No point is chosen twice;
    of points equally far, the first is. ``count`` is at most N.
    """
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    for part in torch.split(centers, 256):
        distances = torch.cdist(points, part, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.minimum(nearest, distances.amin(dim=1))
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    for i in range(count):  # each choice depends on the one before; the host waits for none of them
        farthest = nearest.argmax(dim=0, keepdim=True)
        chosen[i : i + 1] = farthest
        nearest = torch.minimum(nearest, (points - points[farthest]).square().sum(dim=1).sqrt())
        nearest.index_fill_(0, farthest, -1)
    return chosen


def deepfool(
    network: nn.Module, images: Tensor, *, steps: int, candidates: int = 10, overshoot: float = 0.02
) -> Tensor:
    """Euclidean length (N,) of the shortest way that DeepFool finds across the network's decision boundary.

    At each step the classes' logits are taken for linear, and the image moves to where the nearest other class
    draws level (Moosavi-Dezfooli, Fawzi and Frossard, CVPR 2016, arXiv 1511.04599). Pixels may leave [0, 1].

    Args:
        network: in evaluation mode; logits (N, K).
        images: (N, C, H, W).
        steps: at most so many; an image that is not across by then is infinitely far.
        candidates: only the classes with so many highest logits at the start are moved to, the image's own included.
        overshoot: the way goes so much farther, relative to its length, to get across.
    """
    with torch.no_grad():
        logits = network(images)
        classes = logits.topk(min(candidates, logits.shape[1]), dim=1).indices  # the image's own class first
    way = torch.zeros_like(images)
    length = torch.full((len(images),), torch.inf, device=images.device)
    active = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        beyond = (1 + overshoot) * way[active]
        way[active] += _to_the_nearest(network, images[active] + beyond, classes[active])
        beyond = (1 + overshoot) * way[active]
        with torch.no_grad():
            across = network(images[active] + beyond).argmax(dim=1) != classes[active, 0]
        length[active[across]] = beyond[across].flatten(1).norm(dim=1)
        active = active[~across]  # the host waits here, and saves the gradients of all who are across
        if len(active) == 0:
            break
    return length


def _to_the_nearest(network: nn.Module, points: Tensor, classes: Tensor) -> Tensor:
    """The step (N, C, H, W) to where the nearest of ``classes[:, 1:]`` draws level with ``classes[:, 0]``, linearly."""
    points = points.detach().requires_grad_()
    logits = network(points).float().gather(1, classes)
    slopes = [torch.autograd.grad(column.sum(), points, retain_graph=True)[0] for column in logits.unbind(dim=1)]
    normals = torch.stack([slope - slopes[0] for slope in slopes[1:]], dim=1).flatten(2)
    gaps = (logits[:, :1] - logits[:, 1:]).detach()
    norms = normals.norm(dim=2).clamp_min(1e-12)
    nearest = (gaps / norms).argmin(dim=1)
    row = torch.arange(len(points), device=points.device)
    scale = gaps[row, nearest] / norms[row, nearest].square()
    step: Tensor = (scale[:, None] * normals[row, nearest]).view_as(points)
    return step
