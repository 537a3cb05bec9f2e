"""The contract of a recovery: a victim seen through a counter-defense, itself a victim.

A recovery stands between the attack and the black box, composes with every attack, and sees released answers
only. Extra queries are charged, because they go through the same black box. Counting is in the attack's own
images: behind a recovery that asks r times per image, ``budget`` is the black box's divided by r.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from ...components import Component
from ...targets.blackbox import Victim
from ...targets.persistence import restore, snapshot


@dataclass(kw_only=True)
class Recovery(Component, ABC):
    """Base class of all recoveries. Write `query`; override `queries_per_image` if it is not one."""

    kind: ClassVar[str] = "recovery"

    def wrap(self, victim: Victim) -> Self:
        """Stand in front of ``victim``."""
        self.victim = victim
        return self

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
        return snapshot(self, skip=("victim",))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, after `wrap`."""
        restore(self, state)
