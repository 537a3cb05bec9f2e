"""A trained classifier as the benchmark sees it."""

import torch
from torch import Tensor, nn


class Target(nn.Module):
    """Pixels in [0, 1] in, logits out; normalization happens inside.

    Args:
        network: maps normalized images to logits.
        mean, std: per-channel normalization, in pixel units.
        num_classes: K.
        image_shape: (C, H, W).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        num_classes: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) for images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
