"""Attacks and defenses that fail in ways a run has to survive. Loaded by path, as a user's own files are."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from msbench.attacks.base import Attack, AttackContext, AttackTraits, StepReport
from msbench.components import param
from msbench.defenses.base import Defense, DefenseContext, Traits
from msbench.errors import UsageError
from msbench.targets.blackbox import Victim
from torch import Tensor, nn


@dataclass(kw_only=True)
class Untrained(Attack):
    """Queries gray images, forty a step, and learns nothing."""

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="control", access="either", queries_per_step="40")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        super().setup(victim, context)
        self.network = context.new_clone("student")

    def step(self) -> StepReport:
        count = min(40, self.victim.remaining)
        if count:
            self.victim.query(torch.full((count, *self.victim.image_shape), 0.5))
        return StepReport(done=self.victim.remaining == 0)

    def clone(self) -> nn.Module:
        return self.network.eval()


@dataclass(kw_only=True)
class LearnsLast(Untrained):
    """Spends its budget, and learns in a further step, which asks nothing."""

    def step(self) -> StepReport:
        if self.victim.remaining:
            return replace(super().step(), done=False)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.neg_()
        return StepReport(done=True)


@dataclass(kw_only=True)
class Crashes(Untrained):
    """Cannot open a file of the user's, once it has spent a number of queries."""

    after: int = param(120, "queries until it crashes", ge=0)

    def step(self) -> StepReport:
        if self.victim.spent >= self.after:
            raise OSError(f"cannot open {Path.home()}/thesis/notes.txt")
        return super().step()


@dataclass(kw_only=True)
class Careless(Untrained):
    """Draws its queries from the random state that all share."""

    def step(self) -> StepReport:
        count = min(40, self.victim.remaining)
        if count:
            self.victim.query(torch.rand(count, *self.victim.image_shape))
        return StepReport(done=self.victim.remaining == 0)


@dataclass(kw_only=True)
class Curious(Defense):
    """Counts the images that it may fit itself to, and the weights of a surrogate."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True, needs=("data", "surrogate"))
    seen: ClassVar[tuple[int, int]] = (0, 0)

    def prepare(self, context: DefenseContext) -> None:
        weights = sum(parameter.numel() for parameter in context.new_surrogate(0).parameters())
        type(self).seen = len(context.data()), weights

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class Helped(Defense):
    """Looks at the images that the target's data set declares as unrelated."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True, needs=("auxiliary", "queries"))

    def prepare(self, context: DefenseContext) -> None:
        context.auxiliary("pool")

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class Greedy(Untrained):
    """Asks for one more image than is left."""

    def step(self) -> StepReport:
        self.victim.query(torch.rand(self.victim.remaining + 1, *self.victim.image_shape))
        return StepReport(done=True)


@dataclass(kw_only=True)
class Idle(Untrained):
    """Gives up before it has begun."""

    def step(self) -> StepReport:
        return StepReport(done=True, reason="not in the mood")


@dataclass(kw_only=True)
class Tampers(Untrained):
    """Reaches through its victim and sets the count back."""

    def step(self) -> StepReport:
        super().step()
        self.victim.victim.load_state_dict({"spent": 0})  # type: ignore[attr-defined]
        return StepReport(done=False)


@dataclass(kw_only=True)
class Particular(Untrained):
    """Finds out in its first step that it cannot be used like this."""

    def step(self) -> StepReport:
        raise UsageError("this attack wants color images")


@dataclass(kw_only=True)
class GloballyRandom(Untrained):
    """Draws from the global random state, as plugins will."""

    def step(self) -> StepReport:
        count = min(40, self.victim.remaining)
        self.victim.query(torch.rand(count, *self.victim.image_shape))
        return StepReport(done=self.victim.remaining == 0)


@dataclass(kw_only=True)
class Faulty(Defense):
    """Releases what is no probability vector, once it has been asked for a number of images."""

    fault: str = param("nan", "what it releases: nan, logits, half or list")
    after: int = param(0, "images until it does so", ge=0)
    traits: ClassVar[Traits] = Traits(argmax_preserving=True, stateful=True)

    def prepare(self, context: DefenseContext) -> None:
        self.asked = 0

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.asked += len(images)
        if self.asked <= self.after:
            return probs
        faults = {"nan": probs * torch.nan, "logits": probs.log(), "half": probs / 2, "list": probs.tolist()}
        released: Tensor = faults[self.fault]
        return released


@dataclass(kw_only=True)
class Patient(Defense):
    """Turns answers around for an account that has asked about a hundred images, and says that it keeps count."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, needs=("account",))

    def prepare(self, context: DefenseContext) -> None:
        self.asked: dict[str, int] = {}
        self.account: str | None = None

    def attend(self, account: str | None) -> None:
        self.account = account

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        if self.account is None:
            return probs
        before = self.asked.get(self.account, 0)
        self.asked[self.account] = before + len(images)
        return probs if before < 100 else probs.flip(1)


@dataclass(kw_only=True)
class Liar(Defense):
    """Declares to preserve the top class, and releases another."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs.roll(1, dims=1)
