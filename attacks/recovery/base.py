"""The contract of a recovery: a victim seen through a counter-defense, itself a victim.

A recovery stands between the attack and the black box, composes with every attack, and sees released answers
only. Extra queries are charged, because they go through the same black box. Counting is in the attack's own
images: behind a recovery that asks r times per image, ``budget`` is the black box's divided by r.

An attacker may know more than the answers: which defense is deployed, with its parameters, or what its own clone
believes at present. A recovery declares that in its `RecoveryTraits` and gets it from the `RecoveryContext` in
`Recovery.prepare`. What is known of a defense is its code and parameters: the harness builds another instance from
the same spec, with another seed, and nothing of the running one's state, secrets or random numbers.

A recovery may have a part in what clones learn, whichever the attack: every network that an attack builds as a clone
comes to it through `Recovery.student`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NoReturn, Protocol, Self

import torch
from torch import Tensor, nn

from ...components import Component
from ...errors import ContractViolation
from ...targets.blackbox import Victim
from ...targets.persistence import restore, snapshot
from ...targets.streams import stream

Knowledge = Literal["defense", "clone", "clean answers"]


@dataclass(frozen=True, kw_only=True)
class RecoveryTraits:
    """What a recovery needs and costs; ``msbench list recoveries`` shows it."""

    restores: str = ""
    """In plain words: what kind of defense it is made for."""
    knows: tuple[Knowledge, ...] = ()
    """What it is told beyond the released answers; ``clean answers`` make it an upper bound out of reach."""
    queries_per_image: str = "1"
    """Queries charged for each of the attack's, in terms of the recovery's parameters."""


class KnownDefense(Protocol):
    """A defense that the attacker has rebuilt: the deployed one's code and parameters, but its own seed and state."""

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """What it would release (N, K) for probabilities (N, K) and images (N, C, H, W) in [0, 1]."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that its later answers depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


@dataclass(frozen=True, kw_only=True)
class RecoveryContext:
    """What the harness hands to a recovery before the first query."""

    device: torch.device
    seed: int
    """The attack's seed; streams for different purposes come from `generator`."""
    build_clone: Callable[[int], nn.Module]
    """A freshly initialized network of the clone architecture (pixels in [0, 1] in, logits out), from a seed."""
    rebuild_defense: Callable[[int], KnownDefense]
    """Another, prepared instance of the deployed defense, from a seed."""
    clone: Callable[[], nn.Module]
    """The attack's present clone, in evaluation mode; to be called no sooner than it queries."""
    clean: Callable[[Tensor], Tensor] | None = None
    """The target's own answers (N, K), for upper bounds whose name begins with ``oracle_``; None for all others."""

    def stream(self, name: str) -> int:
        """A seed for one purpose, unrelated to the attack's and to the deployed defense's."""
        return stream(self.seed, f"recovery {name}")

    def generator(self, name: str) -> torch.Generator:
        """A random generator on the device for one purpose."""
        return torch.Generator(self.device).manual_seed(self.stream(name))

    def granted(self, recovery: "Recovery") -> "RecoveryContext":
        """This context without what the recovery does not declare: asked for it, it raises `ContractViolation`."""
        known = recovery.traits.knows

        def undeclared(what: Knowledge) -> Callable[..., NoReturn]:
            def refuse(*_: object) -> NoReturn:
                raise ContractViolation(
                    f"recovery {recovery} asks for what it does not declare to know: add {what!r} to its traits' knows"
                )

            return refuse

        return replace(
            self,
            rebuild_defense=self.rebuild_defense if "defense" in known else undeclared("defense"),
            clone=self.clone if "clone" in known else undeclared("clone"),
            clean=self.clean if "clean answers" in known else None,
        )

    def known_defense(self) -> KnownDefense:
        """The defense as an attacker rebuilds it."""
        return self.rebuild_defense(self.stream("rebuilt defense"))


@dataclass(kw_only=True)
class Recovery(Component, ABC):
    """Base class of all recoveries. Write `query`; override `queries_per_image` if it is not one.

    One that draws random numbers, or knows more than the answers, sets itself up in `prepare`; one that has clones
    learn more than their attack teaches them overrides `student`.
    """

    kind: ClassVar[str] = "recovery"
    traits: ClassVar[RecoveryTraits] = RecoveryTraits()

    def wrap(self, victim: Victim) -> Self:
        """Stand in front of ``victim``."""
        self.victim = victim
        return self

    def prepare(self, context: RecoveryContext) -> None:
        """Called once after `wrap`, before the first query; spends none.

        Call ``super().prepare(context)`` first.
        """
        self.context = context

    def student(self, network: nn.Module, seed: int) -> nn.Module:
        """What an attack gets for a freshly built clone (pixels in [0, 1] in, logits out), on the CPU.

        The network as it is, unless a recovery has clones learn more than their attack teaches them; what maps
        images to logits must remain. ``seed`` is what the network was initialized from.
        """
        return network

    @abstractmethod
    def query(self, images: Tensor) -> Tensor:
        """Restored answers (N, K) on the simplex, float32, for images (N, C, H, W) in [0, 1]."""

    @property
    def queries_per_image(self) -> int:
        """Queries charged for each image asked about."""
        return 1

    @property
    def budget(self) -> int:
        """Images that may be asked about in all."""
        return self.victim.budget // self.queries_per_image

    @property
    def spent(self) -> int:
        """Images asked about so far."""
        return self.victim.spent // self.queries_per_image

    @property
    def remaining(self) -> int:
        """Images that may still be asked about."""
        return self.victim.remaining // self.queries_per_image

    @property
    def num_classes(self) -> int:
        """K."""
        return self.victim.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.victim.image_shape

    @property
    def labels_only(self) -> bool:
        """Whether the restored answers are one-hot."""
        return self.victim.labels_only

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the hyperparameters that later answers depend on."""
        return snapshot(self, skip=("victim", "context"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, after `wrap` and `prepare`."""
        restore(self, state)
