"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class MovingAverage(nn.Module):
    """A shadow copy of a network; the first update copies, later ones blend parameters and buffers alike.

    Args:
        network: the network to follow.
        momentum: share that the shadow keeps at each update.
    """

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        self.shadow = copy.deepcopy(network).requires_grad_(False).eval()
        self.momentum = momentum
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.updates: torch.Tensor

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Blend the network's present weights in."""
        momentum = self.momentum if self.updates else 0.0
        pairs = zip(self.shadow.state_dict().values(), network.state_dict().values(), strict=True)
        for shadow, present in pairs:
            if shadow.is_floating_point():
                shadow.mul_(momentum).add_(present, alpha=1 - momentum)
            else:
                shadow.copy_(present)
        self.updates += 1
