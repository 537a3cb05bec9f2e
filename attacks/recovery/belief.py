"""What recoveries have in common that fill in what is not in an answer from the belief of the attacker's own clone."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...components import param
from .base import Recovery, RecoveryContext


@dataclass(kw_only=True)
class Believing(Recovery):
    """Base of recoveries that complete answers by the clone's. Write `complete`; declare that the clone is known.

    The clone is the attack's own, taken anew ``refreshes`` times in a run; for an attack that trains its clone from
    scratch whenever asked for it, that is what this costs.
    """

    refreshes: int = param(20, "how often in a run the clone is taken anew, evenly over the budget", ge=1)

    def prepare(self, context: RecoveryContext) -> None:
        """There is no clone yet."""
        super().prepare(context)
        self.clone: nn.Module = nn.Identity()
        self.taken = 0

    @property
    def labels_only(self) -> bool:
        """False: labels are completed to soft answers."""
        return False

    def query(self, images: Tensor) -> Tensor:
        """The released answers, completed."""
        if self.taken * self.budget <= self.spent * self.refreshes:
            self.clone = self._present_clone()
            self.taken = self.spent * self.refreshes // self.budget + 1
        released, pixels = self.victim.query(images), images.detach()
        with torch.no_grad():
            belief = self.clone(pixels).float().softmax(dim=1)
            return self.complete(released, pixels, belief)

    @abstractmethod
    def complete(self, released: Tensor, images: Tensor, belief: Tensor) -> Tensor:
        """Answers (N, K) made of what was released (N, K) for images (N, C, H, W) and the clone's belief (N, K)."""

    @torch.enable_grad()
    def _present_clone(self) -> nn.Module:
        """A clone may have to be trained, whether or not the attack that asks just now wants gradients."""
        return self.context.clone()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, after the attack has been restored."""
        if state["taken"]:
            self.clone = self._present_clone()  # any of the attack's clones has the right form for the saved weights
        super().load_state_dict(state)
