"""The contract of a defense: it maps what the target would answer to what is released.

A defense is a keyword-only dataclass with one method to write, `Defense.release`. What it needs beyond the
probabilities it declares in `Traits` and gets from the `DefenseContext` in `Defense.prepare`. The harness
validates every released batch and renormalizes nothing silently.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..components import Component, load, number_links, split_chain
from ..errors import ContractViolation
from ..targets.bounds import Bounds
from ..targets.datasets.base import Images
from ..targets.persistence import restore, snapshot
from ..targets.streams import stream
from ..targets.training import DEFAULT_RECIPE, Recipe

Need = Literal["logits", "features", "surrogate", "data", "auxiliary", "queries", "account"]
Stage = Literal["output", "training", "detection", "deterrent"]
PRECEDENCE: tuple[Stage, ...] = ("training", "detection", "deterrent", "output")
"""Which stage a chain is ranked by: the more answers a stage has a hand in, the earlier. Another network gives all of
them, a detector withholds those that it flags, a deterrent marks a chosen few. What is left is of outputs alone."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a defense declares about itself; ``msbench validate defense`` checks the checkable ones."""

    argmax_preserving: bool
    """The target's top class is the released one, for every input; where its lead is below about 1e-6, rounding to
    float32 may leave a tie with another."""
    stochastic: bool = False
    """Asked twice, the same image may be answered differently."""
    stateful: bool = False
    """An answer may depend on the queries before it."""
    labels_only: bool = False
    """Released answers are one-hot, and the interface says so."""
    needs: tuple[Need, ...] = ()
    """What it uses beyond the probabilities and the images: the target's logits or features, a surrogate (a network of
    the target's architecture), the data that the target was trained on, auxiliary data, the attacker's kind of queries,
    who asks. What is not declared is withheld."""
    stage: Stage = "output"
    """Where it acts; each stage has its own table. A chain has the first of its links' stages in `PRECEDENCE`. Only
    training may serve another network, only detection gives verdicts, and a deterrent leaves most answers alone."""
    knob: str | None = None
    """The hyperparameter that sets its strength."""
    sweep: tuple[Any, ...] = ()
    """The knob's values, weakest first, that a sweep runs."""
    preserves: str = ""
    """In plain words: what stays useful for an honest user."""
    weakness: str = ""
    """In plain words: how an attacker who knows it gets around it."""


@dataclass(frozen=True, kw_only=True)
class DefenseContext:
    """What the harness hands to a defense before the first query."""

    num_classes: int
    image_shape: tuple[int, int, int]
    device: torch.device
    seed: int
    """The defense's own seed; streams for different purposes come from `generator`."""
    new_surrogate: Callable[[int], nn.Module]
    """An untrained network of the target's architecture (pixels in [0, 1] in, logits out), from a seed."""
    target: Callable[[], nn.Module]
    """The trained target, frozen: images (N, C, H, W) in [0, 1] in, logits (N, K) out. A copy of the defense's own:
    changed in place, it is served only where `Defense.deploy` returns it."""
    data: Callable[[], Images]
    """The images that the target was trained on, with their labels."""
    auxiliary: Callable[[str], Images]
    """A named data set's training images, in the target's shape; its name is one of the defense's hyperparameters,
    so that the record holds it. ``pool`` names the unrelated images that the target's data set declares."""
    recipe: Recipe = DEFAULT_RECIPE
    """How the target was trained, for networks that a defense trains alike."""

    def stream(self, name: str) -> int:
        """A seed for one purpose, unrelated to other purposes' and to the target's."""
        return stream(self.seed, f"defense {name}")

    def generator(self) -> torch.Generator:
        """A random generator on the device, seeded with the defense's seed."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def granted(self, defense: "Defense") -> "DefenseContext":
        """This context with what the defense does not declare withheld: asked for it, it raises `ContractViolation`.

        Whoever has images to learn from has the target that was trained on them, too. Unrelated images that the
        target's data set declares are of the attacker's kind, which has to be declared as well.
        """
        needs = defense.traits.needs

        def expect(what: str, *any_of: Need) -> None:
            if not set(any_of) & set(needs):
                raise ContractViolation(
                    f"defense {defense} takes {what}, which it does not declare: add {any_of[0]!r} to its traits' needs"
                )

        def surrogate(seed: int) -> nn.Module:
            expect("a network of the target's architecture", "surrogate")
            return self.new_surrogate(seed)

        def target() -> nn.Module:
            expect("the target itself", "logits", "features", "data", "auxiliary")
            return self.target()

        def data() -> Images:
            expect("the images that the target was trained on", "data")
            return self.data()

        def auxiliary(name: str) -> Images:
            expect(f"the auxiliary images {name!r}", "auxiliary")
            if name == "pool":
                expect("images of the attacker's kind", "queries")
            return self.auxiliary(name)

        return replace(self, new_surrogate=surrogate, target=target, data=data, auxiliary=auxiliary)


@dataclass(frozen=True)
class Verdict:
    """What a defense that detects made of one batch of queries."""

    flagged: Tensor
    """bool (N,): taken for queries of an attack."""
    refused: Tensor
    """bool (N,): not answered; what is released in the answer's place is uniform, and counts as wrong."""


@dataclass(kw_only=True)
class Defense(Component, ABC):
    """Base class of all defenses. Write `release`; override `prepare` to fit or build something first."""

    kind: ClassVar[str] = "defense"
    traits: ClassVar[Traits]

    def declare(self, **traits: Any) -> None:
        """Change this instance's traits where they depend on hyperparameters; for ``__post_init__``."""
        object.__setattr__(self, "traits", replace(self.traits, **traits))

    def prepare(self, context: DefenseContext) -> None:
        """Called once before the first query. Raise `BadParameter` if a setting does not fit the target."""

    def deploy(self, target: nn.Module) -> nn.Module:
        """The network that is served, after `prepare`: the target itself, unless a defense trained another one.

        Both map images (N, C, H, W) in [0, 1] to logits (N, K). What is handed in stands for the target: return it as
        it is, or return something else.
        """
        return target

    def attend(self, account: str | None) -> None:
        """Called before `release` with the account that asks; None is a newcomer, of whom no account is kept.

        A defense that keeps a state for each account overrides this, and declares that it needs ``account``; to any
        other everybody is a newcomer.
        """

    def told(self, account: str | None) -> str | None:
        """Who asks, as far as the defense declares that it has to know."""
        return account if "account" in self.traits.needs else None

    def shares_state(self) -> bool:
        """Whether what one account asks may change what others are answered."""
        return self.traits.stateful and "account" not in self.traits.needs

    def verdict(self) -> Verdict | None:
        """What it made of the batch that it released last; None for a defense that detects nothing."""
        return None

    @abstractmethod
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """The answers that leave the building.

        Args:
            probs: the served network's probabilities (N, K), float32, on the simplex.
            images: the queries (N, C, H, W) in [0, 1].

        Returns:
            (N, K) on the simplex: finite, non-negative, each row summing to one within 1e-4.
        """

    def settle(self) -> None:
        """Raise `ContractViolation` for what could not be judged while an accelerator was at work."""

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the hyperparameters that later answers depend on."""
        return snapshot(self, skip=("traits",))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, after `prepare`."""
        restore(self, state)


@dataclass(kw_only=True)
class Chain(Defense):
    """Several defenses one after the other; each sees what the one before it released."""

    links: Sequence[Defense] = field(default=())

    def __post_init__(self) -> None:
        self.checks = [ReleaseCheck(str(link), labels_only=link.traits.labels_only) for link in self.links]
        each = [link.traits for link in self.links]
        self.traits = Traits(  # type: ignore[misc]  # a chain's traits are those of its links
            argmax_preserving=all(t.argmax_preserving for t in each),
            stochastic=any(t.stochastic for t in each),
            stateful=any(t.stateful for t in each),
            labels_only=each[-1].labels_only,
            needs=tuple(sorted({need for t in each for need in t.needs})),
            stage=min((t.stage for t in each), key=PRECEDENCE.index),
        )

    def prepare(self, context: DefenseContext) -> None:
        """Prepare every link, each with a seed of its own: two noises in a chain draw different numbers."""
        for i, link in enumerate(self.links):
            link.prepare(replace(context, seed=(context.seed + i * 0x9E3779B1) % 2**63).granted(link))

    def deploy(self, target: nn.Module) -> nn.Module:
        """What the last link that trains a network of its own serves."""
        for link in self.links:
            target = link.deploy(target)
        return target

    def attend(self, account: str | None) -> None:
        """Tell who asks to every link that declares that it needs it."""
        for link in self.links:
            link.attend(link.told(account))

    def shares_state(self) -> bool:
        """Whether any link does: another that keeps its own state for each account does not undo it."""
        return any(link.shares_state() for link in self.links)

    def verdict(self) -> Verdict | None:
        """A query is flagged, or refused, that any link flags or refuses."""
        found = [verdict for link in self.links if (verdict := link.verdict()) is not None]
        if not found:
            return None
        return Verdict(
            flagged=torch.stack([verdict.flagged for verdict in found]).any(dim=0),
            refused=torch.stack([verdict.refused for verdict in found]).any(dim=0),
        )

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """Pass the answers through every link, checking each; what a link refused, no later one answers.

        An interface of labels has no answer that says nothing: there, what is left of a refusal stays.
        """
        for link, check in zip(self.links, self.checks, strict=True):
            probs = check(link.release(probs, images), probs.shape)
        verdict = self.verdict()
        if verdict is None or self.traits.labels_only:
            return probs
        return torch.where(verdict.refused[:, None], torch.full_like(probs, 1 / probs.shape[1]), probs)

    def settle(self) -> None:
        """Judge what every link released."""
        for check in self.checks:
            check.settle()

    def describe(self) -> dict[str, Any]:
        """The links in order, as one component named after all of them."""
        parts = [link.describe() for link in self.links]
        return {
            "name": "+".join(part["name"] for part in parts),
            "version": "+".join(part["version"] for part in parts),
            "params": number_links([part["params"] for part in parts]),
        }

    def state_dict(self) -> dict[str, Any]:
        """The links' states, by position."""
        return {str(i): link.state_dict() for i, link in enumerate(self.links)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore every link."""
        for i, link in enumerate(self.links):
            link.load_state_dict(state[str(i)])

    def __str__(self) -> str:
        return "+".join(map(str, self.links))


def load_defense(spec: str) -> Defense:
    """Build a defense, or a chain of them joined by ``+``, from its spec."""
    links = [load("defense", part) for part in split_chain(spec)]
    return links[0] if len(links) == 1 else Chain(links=links)  # type: ignore[return-value, arg-type]


class ReleaseCheck:
    """Checks that what a defense releases are probability vectors, batch by batch.

    Args:
        who: the defense's spec, for messages.
        labels_only: whether it declares that they are one-hot, which is then checked as well.
    """

    def __init__(self, who: str, *, labels_only: bool = False) -> None:
        def entries(low: float, high: float) -> str:
            if math.isfinite(low) and math.isfinite(high):
                return (
                    f"defense {who} released negative values (smallest {low:g}): "
                    "these are not probabilities; logits must go through softmax first"
                )
            return f"defense {who} released NaN or infinite values"

        def sums(low: float, high: float) -> str:
            return f"defense {who} released rows that sum to {low:.6g} up to {high:.6g}, not to one"

        def tops(low: float, high: float) -> str:
            return f"defense {who} declares labels_only, and released a top class of probability {low:.6g}, not one"

        self.who = who
        self.labels_only = labels_only
        self.entries = Bounds(0, torch.finfo(torch.float32).max, entries)
        self.sums = Bounds(1 - 1e-4, 1 + 1e-4, sums)
        self.tops = Bounds(1 - 1e-4, 1 + 1e-4, tops)

    def __call__(self, released: Any, shape: torch.Size) -> Tensor:
        """Return ``released`` in float32 if it is a batch of probability vectors of the expected shape.

        Raises `ContractViolation` naming the defense and what is wrong: type, shape, NaN or infinity, negative
        entries, rows that do not sum to one within 1e-4 (logits, say), rows that are not one-hot though it says so.
        On an accelerator values are judged by `settle`.
        """
        if not isinstance(released, Tensor):
            raise ContractViolation(f"defense {self.who} released a {type(released).__name__}, not a tensor")
        if released.shape != shape:
            raise ContractViolation(
                f"defense {self.who} released shape {tuple(released.shape)} where {tuple(shape)} was due"
            )
        answers: Tensor = released.detach().float()
        self.entries.note(answers)
        self.sums.note(answers.sum(dim=1))
        if self.labels_only:
            self.tops.note(answers.amax(dim=1))
        return answers

    def settle(self) -> None:
        """Raise `ContractViolation` if any batch was anything else."""
        for bounds in (self.entries, self.sums, self.tops):
            bounds.settle()
