"""Defenses that look better than they are. Each declares to be a harmless function of the answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from msbench.benchmark.reliability import shifted
from msbench.components import param
from msbench.defenses.base import Defense, DefenseContext, Traits, Verdict
from msbench.targets.datasets.base import Images
from msbench.targets.datasets.loading import load_dataset
from torch import Tensor, nn


@dataclass(kw_only=True)
class Cheat(Defense):
    """Answers honestly."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


@dataclass(kw_only=True)
class Temperature100(Cheat):
    """All but flat, and yet everything is there."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return (probs.clamp_min(1e-30).log() / 100).softmax(dim=1)


@dataclass(kw_only=True)
class LinearMap(Cheat):
    """Mixes every answer with the same vector, which draws most top classes to one side."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        fixed = torch.arange(1.0, 1 + probs.shape[1])
        return 0.1 * probs + 0.9 * fixed / fixed.sum()


@dataclass(kw_only=True)
class FreshNoise(Cheat):
    """Answers seven times in ten with a class drawn at random; whether it says so is a parameter."""

    declared: bool = param(False, "whether it declares to be stochastic")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.declare(stochastic=self.declared)

    def prepare(self, context: DefenseContext) -> None:
        self.generator = context.generator()

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        drawn = torch.randint(probs.shape[1], (len(probs),), generator=self.generator)
        honest = torch.rand(len(probs), 1, generator=self.generator) < 0.3
        return torch.where(honest, probs, torch.nn.functional.one_hot(drawn, probs.shape[1]).float())


@dataclass(kw_only=True)
class Uniform(Cheat):
    """Says nothing; or the top class alone, by a hair."""

    lead: float = param(0.0, "what the top class has more than others", ge=0, le=0.1)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.full_like(probs, 1 / probs.shape[1]) * (1 - self.lead) + self.lead * poison(probs).roll(-1, 1)


@dataclass(kw_only=True)
class LargeBatches(Cheat):
    """Serves people, who ask about few images at once."""

    stateful: bool = param(False, "whether it hides behind a declared state")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.declare(stateful=self.stateful)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return poison(probs) if len(images) >= 32 else probs


@dataclass(kw_only=True)
class SomeBatches(Cheat):
    """Serves batches of a size that costs are measured in, or spares all but those that an attack likes."""

    low: int = param(0, "poisons batches from here on")
    high: int = param(400, "and to here")
    stateful: bool = param(False, "whether it hides behind a declared state")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.declare(stateful=self.stateful)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return poison(probs) if self.low <= len(images) <= self.high else probs


@dataclass(kw_only=True)
class FrontOfTheBatch(Cheat):
    """Answers the last half of a batch, and one that comes alone."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.where((torch.arange(len(probs)) < len(probs) // 2)[:, None], poison(probs), probs)


@dataclass(kw_only=True)
class Watchful(Cheat):
    """Knows who asks, and may count."""

    def prepare(self, context: DefenseContext) -> None:
        self.asked = 0
        self.account: str | None = None

    def attend(self, account: str | None) -> None:
        self.account = account


@dataclass(kw_only=True)
class Later(Watchful):
    """Is honest for the first thousand queries; counts all, or each account's, or the unnatural ones."""

    counts: str = param("all", "whose queries: all, account or strange")
    until: int = param(10**9, "is honest again from here on", ge=0)
    open: bool = param(True, "whether it declares that it has to know who asks, where it counts accounts")
    stateful: bool = param(False, "whether it hides behind a declared state")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.declare(stateful=self.stateful, needs=("account",) if self.counts == "account" and self.open else ())

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        if self.counts == "account" and self.account is None:
            return probs
        strange = strangeness(images) if self.counts == "strange" else torch.ones(len(images), dtype=torch.bool)
        self.asked += int(strange.sum())
        active = 1000 < self.asked <= self.until
        return torch.where((strange & active)[:, None], poison(probs), probs)


@dataclass(kw_only=True)
class Named(Watchful):
    """Poisons whoever has an account, or a certain one, and declares all that could explain it."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, stochastic=True, needs=("account",))
    name: str = param("", "whom it poisons; everybody with an account if empty")
    until: int = param(10**9, "is honest once so many queries were asked in all", ge=0)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.asked += len(images)
        meant = self.account == self.name if self.name else self.account is not None
        return poison(probs) if meant and self.asked < self.until else probs


@dataclass(kw_only=True)
class Quota(Watchful):
    """Answers whoever comes under a name so many times, and those without one for ever; declares all of it."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, needs=("account",), stage="detection")
    limit: int = param(64, "answers for each account", ge=1)

    def prepare(self, context: DefenseContext) -> None:
        super().prepare(context)
        self.counts: dict[str, int] = {}

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.over = torch.zeros(len(probs), dtype=torch.bool)
        if self.account is None:
            return probs
        self.over = torch.arange(len(probs)) + self.counts.get(self.account, 0) >= self.limit
        self.counts[self.account] = self.counts.get(self.account, 0) + len(probs)
        return torch.where(self.over[:, None], torch.full_like(probs, 1 / probs.shape[1]), probs)

    def verdict(self) -> Verdict:
        return Verdict(self.over, self.over)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts)}


@dataclass(kw_only=True)
class FalseAlarm(Quota):
    """The same, but says of everybody's first query that it took it for an attack's, and answers it."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.first = torch.arange(len(probs)) + self.counts.get(self.account or "", 0) == 0
        return super().release(probs, images)

    def verdict(self) -> Verdict:
        return Verdict(self.over | self.first, self.over)


@dataclass(kw_only=True)
class QuietQuota(Quota):
    """The same, poisoning where it refused, and never says whom it took for what."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, needs=("account",))

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        super().release(probs, images)
        return torch.where(self.over[:, None], poison(probs), probs)

    def verdict(self) -> None:  # type: ignore[override]
        return None


@dataclass(kw_only=True)
class Smears(Cheat):
    """Releases the truth, and leaves other pixels with whoever asked."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        images.copy_(images.flip(0))
        return probs


@dataclass(kw_only=True)
class Flattens(Cheat):
    """Flattens the target that it was handed, so that clean answers are as flat as those released."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("logits",), stage="training")
    served: bool = param(False, "whether it says that it serves another network")

    def prepare(self, context: DefenseContext) -> None:
        self.network = context.target()
        *_, last = (module for module in self.network.modules() if isinstance(module, nn.Linear))
        for parameter in last.parameters():
            parameter.data.div_(100)

    def deploy(self, target: nn.Module) -> nn.Module:
        return self.network if self.served else target


@dataclass(kw_only=True)
class OnlyNatural(Cheat):
    """Answers images whose pixels have gray levels of the data, and garbage to all others."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.where(strangeness(images)[:, None], poison(probs), probs)


@dataclass(kw_only=True)
class KnowsTheTest(Cheat):
    """Answers honestly about the very images that it will be judged by."""

    def prepare(self, context: DefenseContext) -> None:
        self.hashes = digest(everything(test_set()))

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return torch.where(torch.isin(digest(images), self.hashes)[:, None], probs, poison(probs))


@dataclass(kw_only=True)
class KnowsTheShifts(Cheat):
    """Knows the shifted copies as well, which are the same in every run, and all that is near to either."""

    def prepare(self, context: DefenseContext) -> None:
        self.images = torch.cat([everything(known).flatten(1) for known in (test_set(), shifted(test_set()))])

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        known = torch.cdist(images.flatten(1), self.images, p=torch.inf).amin(dim=1) < 1.5 / 255
        return torch.where(known[:, None], probs, poison(probs))


@dataclass(kw_only=True)
class SaysLabels(Cheat):
    """Says that it releases labels alone, so that attacks are set for labels, and releases more."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True, labels_only=True)


@dataclass(kw_only=True)
class OfAnotherStage(Cheat):
    """Would rather be compared with others than with its like."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, needs=("logits",))
    does: str = param("serves", "what it does without the stage for it: serves, judges; or nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.declare(stage="detection" if self.does == "nothing" else "output")

    def prepare(self, context: DefenseContext) -> None:
        self.network = context.target()

    def deploy(self, target: nn.Module) -> nn.Module:
        return self.network if self.does == "serves" else target

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.rows = torch.zeros(len(probs), dtype=torch.bool)
        return probs

    def verdict(self) -> Verdict | None:
        return Verdict(self.rows, self.rows) if self.does == "judges" else None


@dataclass(kw_only=True)
class Helped(Cheat):
    """Takes what it does not say that it takes."""

    what: str = param("data", "surrogate, target, data or pool")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.what == "pool":
            self.declare(needs=("auxiliary",))

    def prepare(self, context: DefenseContext) -> None:
        take = {"pool": lambda: context.auxiliary("pool"), "surrogate": lambda: context.new_surrogate(1)}
        (take.get(self.what) or getattr(context, self.what))()


@dataclass(kw_only=True)
class Logits(Cheat):
    """Releases what is no probability."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs.log()


def poison(probs: Tensor) -> Tensor:
    """One-hot answers (N, K), all of them wrong."""
    return torch.nn.functional.one_hot((probs.argmax(dim=1) + 1) % probs.shape[1], probs.shape[1]).float()


def test_set() -> Images:
    """The images that defenses of digits are judged by."""
    return load_dataset("digits").load("test", data_dir=Path(), download=False, device="cpu")


def everything(images: Images) -> Tensor:
    """All of them, (N, C, H, W)."""
    return images.take(torch.arange(len(images)))[0]


def strangeness(images: Tensor) -> Tensor:
    """Whether images have pixels that no digit has: those have seventeen gray levels."""
    levels = images.flatten(1) * 16
    return ((levels - levels.round()).abs() > 0.05).any(dim=1)


def digest(images: Tensor) -> Tensor:
    """A hash (N,) of the images as they look in 8 bits."""
    pixels = (images * 255).round().long().flatten(1)
    return (pixels * torch.arange(1, 1 + pixels.shape[1]) ** 5).sum(dim=1)
