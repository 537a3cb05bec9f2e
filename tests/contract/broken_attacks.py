"""A small attack that keeps the contract, and others that break it, one way each."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from msbench.attacks.base import Attack, AttackContext, AttackTraits, StepReport
from msbench.errors import BudgetExceeded
from msbench.targets.blackbox import Victim
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(kw_only=True)
class Honest(Attack):
    """Trains on noise."""

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="control", access="probabilities", queries_per_step="B")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        super().setup(victim, context)
        self.student = context.new_clone("student")
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9)
        self.generator = context.generator("noise")

    def images(self, count: int) -> Tensor:
        return torch.rand(count, *self.victim.image_shape, generator=self.generator)

    def train(self, images: Tensor, answers: Tensor) -> None:
        loss = F.cross_entropy(self.student.train()(images), answers)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()

    def step(self) -> StepReport:
        images = self.images(min(100, self.victim.remaining))
        if len(images):
            self.train(images, self.victim.query(images))
        return StepReport(done=self.victim.remaining == 0)

    def clone(self) -> nn.Module:
        return copy.deepcopy(self.student).eval()


@dataclass(kw_only=True)
class HonestPool(Honest):
    """Trains on the labels of a pool smaller than its budget, and says so."""

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="pool", access="labels", queries_per_step="B")

    def step(self) -> StepReport:
        assert self.context.pool is not None
        left = len(self.context.pool) - self.victim.spent
        count = min(100, self.victim.remaining, left)
        if count:
            images, _ = self.context.pool.take(torch.arange(self.victim.spent, self.victim.spent + count))
            answers = self.victim.query(images)
            assert bool((answers.amax(dim=1) == 1).all())
            self.train(images, answers)
        return StepReport(done=count < 100, reason="" if self.victim.remaining == 0 else "the pool is used up")


@dataclass(kw_only=True)
class Overspends(Honest):
    def step(self) -> StepReport:
        images = self.images(100)
        self.train(images, self.victim.query(images))
        return StepReport(done=self.victim.remaining == 0)


@dataclass(kw_only=True)
class OverspendsQuietly(Overspends):
    def step(self) -> StepReport:
        try:
            return super().step()
        except BudgetExceeded:
            return StepReport(done=True, reason="enough")


@dataclass(kw_only=True)
class NeverEnds(Honest):
    def step(self) -> StepReport:
        super().step()
        return StepReport()


@dataclass(kw_only=True)
class QuitsSilently(Honest):
    def step(self) -> StepReport:
        super().step()
        return StepReport(done=True)


@dataclass(kw_only=True)
class Impatient(Honest):
    def setup(self, victim: Victim, context: AttackContext) -> None:
        super().setup(victim, context)
        victim.query(self.images(10))


@dataclass(kw_only=True)
class LeavesTrainingOn(Honest):
    def clone(self) -> nn.Module:
        return copy.deepcopy(self.student).train()


@dataclass(kw_only=True)
class Diverges(Honest):
    def clone(self) -> nn.Module:
        network = super().clone()
        for parameter in network.parameters():
            parameter.data.fill_(torch.inf)
        return network


@dataclass(kw_only=True)
class WrongShape(Honest):
    def clone(self) -> nn.Module:
        return nn.Sequential(super().clone(), nn.Flatten(0)).eval()


@dataclass(kw_only=True)
class DisturbedByEvaluation(Honest):
    def clone(self) -> nn.Module:
        self.images(1)
        return super().clone()


@dataclass(kw_only=True)
class GloballyRandom(Honest):
    def images(self, count: int) -> Tensor:
        return torch.rand(count, *self.victim.image_shape)


@dataclass(kw_only=True)
class IgnoresItsSeed(Honest):
    def setup(self, victim: Victim, context: AttackContext) -> None:
        super().setup(victim, context)
        self.student = context.build_clone(0)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(0)


@dataclass(kw_only=True)
class ForgetsItsGenerator(Honest):
    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "generator"}


@dataclass(kw_only=True)
class ForgetsItsMomentum(Honest):
    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "optimizer"}


@dataclass(kw_only=True)
class SavesObjects(Honest):
    def state_dict(self) -> dict[str, Any]:
        return {"student": self.student}


@dataclass(kw_only=True)
class Crashes(Honest):
    def step(self) -> StepReport:
        raise ZeroDivisionError("division by zero")
