"""Defenses that break the contract, one way each, and two unusual ones that keep it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from msbench import Defense, DefenseContext, Traits, Verdict
from msbench.defenses.detection import Account
from msbench.defenses.prada import PRADA
from msbench.errors import BadParameter
from torch import Tensor, nn

PLAIN = Traits(argmax_preserving=False)


def uniform(probs: Tensor) -> Tensor:
    return torch.full_like(probs, 1 / probs.shape[1])


@dataclass(kw_only=True)
class Identity(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class CountingHonestly(Defense):
    """Keeps the contract: it poisons late, and says that it is stateful."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True)
    until: ClassVar[int] = 1000

    def prepare(self, context: DefenseContext) -> None:
        self.seen = 0

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        place = self.seen + torch.arange(len(images))
        self.seen += len(images)
        return torch.where((place >= self.until)[:, None], uniform(probs), probs)


@dataclass(kw_only=True)
class OnlyTenClasses(Identity):
    """Keeps the contract: it fits ten classes only, and says so."""

    def prepare(self, context: DefenseContext) -> None:
        if context.num_classes != 10:
            raise BadParameter("made for ten classes")


@dataclass(kw_only=True)
class KnowsWhoAsksWhenAsked(Identity):
    """Keeps the contract: who asks is known from `attend` on, which comes before every answer."""

    def attend(self, account: str | None) -> None:
        self.account = account

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        assert self.account is None or self.account
        return probs


@dataclass(kw_only=True)
class ServesAnotherNetwork(Defense):
    """Says that it keeps the top class, and keeps that of another network."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True, needs=("surrogate", "data"), stage="training")

    def prepare(self, context: DefenseContext) -> None:
        self.network = context.new_surrogate(5).eval()

    def deploy(self, target: nn.Module) -> nn.Module:
        return self.network

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class ServesItAmongOutputs(ServesAnotherNetwork):
    """Says that it only changes outputs."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("surrogate", "data"))


@dataclass(kw_only=True)
class TrainsNothing(Identity):
    """Would rather be ranked among those that train."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="training")


@dataclass(kw_only=True)
class ServesTheTargetAmongThoseThatTrain(Identity):
    """The same, and says that it looked at the data."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("data",), stage="training")


@dataclass(kw_only=True)
class RoundsWhereItSaysThatItKeepsTheTopClass(Identity):
    traits: ClassVar[Traits] = Traits(argmax_preserving=True)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        rounded = probs.mul(1000).round() + 1e-6
        return rounded / rounded.sum(dim=1, keepdim=True)


@dataclass(kw_only=True)
class PoisonsAmongDetectors(Identity):
    """Poisons all that it does not flag, which is everything."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="detection")

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.none = torch.zeros(len(probs), dtype=torch.bool)
        return uniform(probs)

    def verdict(self) -> Verdict:
        return Verdict(flagged=self.none, refused=self.none)


@dataclass(kw_only=True)
class TakesEverybodyForOne(PRADA):
    """Looks for an attack in what all accounts ask together."""

    def attend(self, account: str | None) -> None:
        super().attend("everybody")


@dataclass(kw_only=True)
class ForgetsItsAccounts(PRADA):
    """Loses what it keeps of accounts whenever it is restored."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"accounts": {}}


@dataclass(kw_only=True)
class JudgesABatchByItsLast(PRADA):
    """Suspects all queries of a batch as much as the last one."""

    def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
        return super().suspicion(probs, images, account)[-1:].expand(len(probs))


@dataclass(kw_only=True)
class DetectsNothing(Identity):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="detection")


@dataclass(kw_only=True)
class MarksEverything(Identity):
    """Would rather be ranked among those that mark a chosen few answers."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="deterrent")

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return 0.9 * probs + 0.1 * uniform(probs)


@dataclass(kw_only=True)
class TurnsNoKnob(Identity):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, knob="strength", sweep=(1, 2))


@dataclass(kw_only=True)
class SweepsNothing(Identity):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, sweep=(1, 2))


@dataclass(kw_only=True)
class TakesData(Identity):
    """Learns from the target's data, and does not say so."""

    def prepare(self, context: DefenseContext) -> None:
        self.images = len(context.data())


@dataclass(kw_only=True)
class TakesTheTarget(Identity):
    def prepare(self, context: DefenseContext) -> None:
        context.target()


@dataclass(kw_only=True)
class TakesASurrogate(Identity):
    def prepare(self, context: DefenseContext) -> None:
        context.new_surrogate(1)


@dataclass(kw_only=True)
class TakesQueries(Identity):
    """Says that it learns from unrelated images, and not that these are of the attacker's kind."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("auxiliary",))

    def prepare(self, context: DefenseContext) -> None:
        context.auxiliary("pool")


@dataclass(kw_only=True)
class TakesOtherImages(Identity):
    def prepare(self, context: DefenseContext) -> None:
        context.auxiliary("svhn")


@dataclass(kw_only=True)
class SeesTheDifference(Identity):
    """Keeps the contract: it would answer those otherwise who compute in bfloat16, but is shown nobody who does."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return uniform(probs) if torch.is_autocast_enabled("cpu") or images.dtype != torch.float32 else probs


@dataclass(kw_only=True)
class OneByOne(Identity):
    """Does right, and takes an hour for a test set."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.stack([row / row.sum() for row in probs])


@dataclass(kw_only=True)
class FitsNothing(Identity):
    def prepare(self, context: DefenseContext) -> None:
        raise BadParameter("fits nothing")


@dataclass(kw_only=True)
class FailsToPrepare(Identity):
    def prepare(self, context: DefenseContext) -> None:
        raise FileNotFoundError("no weights\nand a second line")


@dataclass(kw_only=True)
class Undeclared(Defense):
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class Abstract(Defense):
    traits: ClassVar[Traits] = PLAIN


@dataclass(kw_only=True)
class Crashes(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        raise ZeroDivisionError("division by zero")


@dataclass(kw_only=True)
class ReleasesNan(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return (probs * probs.log()) / (probs * probs.log()).sum(dim=1, keepdim=True)  # 0 · log 0


@dataclass(kw_only=True)
class ReleasesLogits(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs.clamp_min(1e-9).log()


@dataclass(kw_only=True)
class Unnormalized(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.round(probs, decimals=1)


@dataclass(kw_only=True)
class DropsAClass(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs[:, 1:] / probs[:, 1:].sum(dim=1, keepdim=True)


@dataclass(kw_only=True)
class Integers(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(probs.argmax(dim=1), probs.shape[1])


@dataclass(kw_only=True)
class InPlace(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs.sqrt_().div_(probs.sum(dim=1, keepdim=True))


@dataclass(kw_only=True)
class ChangesUncertainTops(Defense):
    traits: ClassVar[Traits] = Traits(argmax_preserving=True)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.where(probs.amax(dim=1, keepdim=True) < 0.5, probs.roll(1, dims=1), probs)


@dataclass(kw_only=True)
class NotOneHot(Defense):
    traits: ClassVar[Traits] = Traits(argmax_preserving=True, labels_only=True)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class SecretlyRandom(Defense):
    traits: ClassVar[Traits] = PLAIN

    def prepare(self, context: DefenseContext) -> None:
        self.generator = context.generator()

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        noise = torch.rand(probs.shape, generator=self.generator)
        return (probs + noise) / (probs + noise).sum(dim=1, keepdim=True)


class Shaky(nn.Module):
    """A network that answers at random."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), self.num_classes)


@dataclass(kw_only=True)
class ServesAShakyNetwork(Identity):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("data",), stage="training")

    def prepare(self, context: DefenseContext) -> None:
        self.network = Shaky(context.num_classes)

    def deploy(self, target: nn.Module) -> nn.Module:
        return self.network


@dataclass(kw_only=True)
class RandomInNameOnly(Defense):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stochastic=True)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class GloballyRandom(Defense):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stochastic=True)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        noise = torch.rand(probs.shape)
        return (probs + noise) / (probs + noise).sum(dim=1, keepdim=True)


@dataclass(kw_only=True)
class PoisonsLater(CountingHonestly):
    traits: ClassVar[Traits] = PLAIN


@dataclass(kw_only=True)
class SharesItsState(CountingHonestly):
    """Says that it keeps a state for each account, and keeps one for all."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, needs=("account",))


@dataclass(kw_only=True)
class PoisonsWhoHasAnAccount(Defense):
    """Does without memory what looks like having noticed an attack: honest users are newcomers."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("account",))

    def prepare(self, context: DefenseContext) -> None:
        self.account: str | None = None

    def attend(self, account: str | None) -> None:
        self.account = account

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs if self.account is None else uniform(probs)


@dataclass(kw_only=True)
class PoisonsWhoHasAnAccountUnderNoise(PoisonsWhoHasAnAccount):
    """The same behind all that could explain it."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, stochastic=True, needs=("account",))


@dataclass(kw_only=True)
class SharesItsStateUnderNoise(SharesItsState):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, stochastic=True, needs=("account",))


@dataclass(kw_only=True)
class ChangesTheTargetInPlace(Identity):
    """Trains the network that it was handed, and does not serve it."""

    def prepare(self, context: DefenseContext) -> None:
        for parameter in context.target().parameters():
            parameter.data.mul_(0.5)


@dataclass(kw_only=True)
class RefusesInNameOnly(Identity):
    """Says that it refused what it answered."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stage="detection")

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.rows = torch.ones(len(probs), dtype=torch.bool)
        return probs

    def verdict(self) -> Verdict:
        return Verdict(self.rows, self.rows)


@dataclass(kw_only=True)
class JudgesAmongOutputs(RefusesInNameOnly):
    """Flags queries, and says that it only changes outputs."""

    traits: ClassVar[Traits] = PLAIN


@dataclass(kw_only=True)
class JudgesTheBatch(RefusesInNameOnly):
    """Gives one verdict for a whole batch."""

    def verdict(self) -> Verdict:
        return Verdict(self.rows.any(), self.rows.any())


@dataclass(kw_only=True)
class PoisonsLaterUnderNoise(SecretlyRandom):
    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stochastic=True)

    def prepare(self, context: DefenseContext) -> None:
        super().prepare(context)
        self.seen = 0

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        place = self.seen + torch.arange(len(images))
        self.seen += len(images)
        return super().release(torch.where((place >= 1000)[:, None], uniform(probs), probs), images)


@dataclass(kw_only=True)
class RemembersTheLast(Defense):
    traits: ClassVar[Traits] = PLAIN

    def prepare(self, context: DefenseContext) -> None:
        self.last = torch.zeros(context.num_classes)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        mixed = probs + 0.01 * self.last
        self.last = probs[-1].clone()
        return mixed / mixed.sum(dim=1, keepdim=True)


@dataclass(kw_only=True)
class PoisonsLargeBatches(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return uniform(probs) if len(probs) >= 32 else probs


@dataclass(kw_only=True)
class PoisonsLargeBatchesUnderAState(PoisonsLargeBatches):
    """Says that answers depend on earlier ones, which does not explain it."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True)


@dataclass(kw_only=True)
class PoisonsVeryLargeBatches(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return uniform(probs) if len(probs) > 64 else probs


@dataclass(kw_only=True)
class PoisonsLargeBatchesOfManyClasses(PoisonsLargeBatches):
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return super().release(probs, images) if probs.shape[1] >= 43 else probs


@dataclass(kw_only=True)
class PoisonsTheFrontOfABatch(Defense):
    traits: ClassVar[Traits] = PLAIN

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        front = (torch.arange(len(probs)) < 0.8 * len(probs) - 1)[:, None]
        return torch.where(front, uniform(probs), probs)


@dataclass(kw_only=True)
class Forgetful(CountingHonestly):
    until: ClassVar[int] = 100

    def state_dict(self) -> dict[str, Any]:
        return {}


@dataclass(kw_only=True)
class Unsavable(Identity):
    def prepare(self, context: DefenseContext) -> None:
        self.helper = object()
