"""Knockoff Nets: query images of another data set, train on the answers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..errors import UsageError
from ..targets.blackbox import Victim
from .base import Attack, AttackContext, AttackTraits, StepReport
from .learning import OptimizerName, Schedule, build_optimizer, decay, descend, for_training, set_lr


@dataclass(kw_only=True)
class KnockoffNets(Attack):
    """Query a random part of a pool of unrelated images, then train a clone on the transfer set.

    Images are drawn without replacement; the clone is trained from scratch with soft cross-entropy, as in the
    random strategy of Orekondy, Schiele and Fritz (CVPR 2019, arXiv 1812.02766). At every milestone the harness
    asks for the clone that the answers so far allow, and it is trained anew for it: the released code warm-starts
    larger budgets from smaller ones, which this does not. The pool is declared in the record.

    Deviations: the schedule is a decay over the training's epochs rather than a step after 60 of 100.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="pool", access="either", queries_per_step="B")
    paper: ClassVar[Paper] = Paper(
        key="orekondy2019knockoff",
        title="Knockoff Nets: Stealing Functionality of Black-Box Models",
        authors="Orekondy, Tribhuvanesh and Schiele, Bernt and Fritz, Mario",
        year=2019,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="1812.02766",
    )

    query_batch: int = param(256, "images per query", ge=1)
    epochs: int = param(100, "passes over the transfer set for each clone", ge=1)
    batch: int = param(64, "images per training batch", ge=1)
    optimizer: OptimizerName = param("sgd", "the clone's optimizer: sgd (momentum 0.9) or adam")
    lr: float = param(0.01, "the clone's learning rate at the start", gt=0)
    weight_decay: float = param(5e-4, "the clone's weight decay", ge=0)
    schedule: Schedule = param("cosine", "decay of the rate over the epochs: multistep, cosine, constant")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Shuffle the pool. Raises `UsageError` without one."""
        super().setup(victim, context)
        if context.pool is None:
            raise UsageError("knockoff queries a pool of images and was given none: name one with --pool")
        self.pool = context.pool
        shuffle = torch.Generator().manual_seed(context.stream("pool order"))
        self.order = torch.randperm(len(self.pool), generator=shuffle)
        self.answers = torch.zeros(0, victim.num_classes, device=context.device)

    def step(self) -> StepReport:
        """Query the next batch of the pool."""
        asked = len(self.answers)
        count = min(self.query_batch, self.victim.remaining, len(self.pool) - asked)
        if count:
            images, _ = self.pool.take(self.order[asked : asked + count])
            self.answers = torch.cat([self.answers, self.victim.query(images)])
        if len(self.answers) == len(self.pool) and self.victim.remaining:
            return StepReport(done=True, reason=f"the pool's {len(self.pool)} images are all queried")
        return StepReport(done=self.victim.remaining == 0)

    def clone(self) -> nn.Module:
        """A clone trained from scratch on all answers so far; untrained while there are none."""
        network = self.context.new_clone("student 0")
        if len(self.answers) == 0:
            return network.eval()
        optimizer = build_optimizer(self.optimizer, network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        shuffle = torch.Generator().manual_seed(self.context.stream("training order"))
        for epoch in range(self.epochs):
            set_lr(optimizer, self.lr * decay(self.schedule, epoch / self.epochs))
            for chosen in torch.split(torch.randperm(len(self.answers), generator=shuffle), self.batch):
                images, _ = self.pool.take(self.order[chosen])
                logits = for_training(network, len(chosen))(images)
                descend(optimizer, _soft_cross_entropy(logits, self.answers[chosen]))
        return network.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """The answers so far; the pool and its order follow from the seed."""
        return {"answers": self.answers.clone()}


def _soft_cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    return -(answers * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()
