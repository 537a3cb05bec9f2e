"""Constants: ask about images of one gray each."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from msbench import Attack, AttackContext, AttackTraits, StepReport, param
from msbench.targets.blackbox import Victim
from torch import nn
from torch.nn import functional as F


@dataclass(kw_only=True)
class Constants(Attack):
    """Query images that have the same random value in all pixels of a channel, and train on the answers."""

    batch: int = param(64, "images per step", ge=1)
    lr: float = param(0.01, "the clone's learning rate (Adam)", gt=0)

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="control", access="either", queries_per_step="B")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Build the clone and its optimizer."""
        super().setup(victim, context)
        self.student = context.new_clone("student")
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=self.lr)
        self.colors = context.generator("colors")

    def step(self) -> StepReport:
        """Query one batch and train on it."""
        count = min(self.batch, self.victim.remaining)
        if count == 0:
            return StepReport(done=True)
        channels, height, width = self.victim.image_shape
        colors = torch.rand(count, channels, 1, 1, generator=self.colors, device=self.context.device)
        images = colors.expand(-1, -1, height, width)
        loss = F.cross_entropy(self.student.train()(images), self.victim.query(images))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return StepReport(done=self.victim.remaining == 0, losses={"student": loss.detach()})

    def clone(self) -> nn.Module:
        """The clone."""
        return copy.deepcopy(self.student).eval()
