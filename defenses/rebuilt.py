"""A defense as an attacker who knows it rebuilds it: to try answers on, without a query."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import UsageError
from .base import DefenseContext, load_defense


def withheld(*_: object) -> NoReturn:
    """What stands in an attacker's context for the target, its data, and data that only the defender names.

    Raises `UsageError`.
    """
    raise UsageError(
        "this defense is made from the target or from the defender's data, so no attacker can rebuild it: "
        "take a recovery that does not"
    )


class Rebuilt:
    """Another instance of a defense: the same code and parameters, but a seed and a state of its own.

    Args:
        spec: what the deployed defense was built from.
        context: what it is prepared with; its seed must not be the deployed defense's.
    """

    def __init__(self, spec: str, context: DefenseContext) -> None:
        self.defense = load_defense(spec)
        self.defense.prepare(context.granted(self.defense))

    @torch.no_grad()
    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """What it releases (N, K), float32, for probabilities (N, K) and images, which both stay as they are."""
        with torch.autocast(images.device.type, enabled=False):
            self.defense.attend(None)
            return self.defense.release(probs.float().clone(), images.float().clone()).float().clone()

    def state_dict(self) -> dict[str, Any]:
        """The defense's state."""
        return self.defense.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.defense.load_state_dict(state)
