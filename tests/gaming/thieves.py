"""Attacks that want more answers than they pay for."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from msbench.attacks.random_noise import RandomNoise
from msbench.components import param
from torch import Tensor, nn


@dataclass(kw_only=True)
class Thief(RandomNoise):
    """Once the budget is spent, asks on through a copy of the black box that has forgotten what was spent."""

    when: str = param("clone", "as it hands out its clone, its diagnostics, or as the clone is measured")

    def ask_on(self, moment: str) -> None:
        if moment == self.when and self.victim.remaining == 0:
            box = copy.copy(self.victim.victim)  # type: ignore[attr-defined]  # behind the recovery
            box.load_state_dict({"spent": 0})
            box.query(torch.full((10, *box.image_shape), 0.5))

    def clone(self) -> nn.Module:
        self.ask_on("clone")
        return Asking(super().clone(), lambda: self.ask_on("measured"))

    def diagnostics(self) -> dict[str, float]:
        self.ask_on("diagnostics")
        return super().diagnostics()


class Asking(nn.Module):
    """A network that does something else beside answering."""

    def __init__(self, network: nn.Module, ask: Callable[[], None]) -> None:
        super().__init__()
        self.network = network
        self.ask = ask

    def forward(self, images: Tensor) -> Tensor:
        self.ask()
        logits: Tensor = self.network(images)
        return logits
