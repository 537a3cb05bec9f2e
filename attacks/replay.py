"""Replay: what was asked and answered lately, to train on again without asking again."""

from typing import Any

import torch
from torch import Tensor


class Replay:
    """The last queries and their answers, on the device, oldest overwritten first.

    Pixels are kept in 8 bits: a million images of 32x32x3 take 3.07 GB, and 40 MB more for answers in ten classes.
    An attack that replays asks about `quantize`\\ d images, so that what is replayed is what was answered.

    Args:
        capacity: how many images are kept.
        image_shape: (C, H, W).
        num_classes: K.
        device: where they are kept.
    """

    def __init__(
        self, capacity: int, image_shape: tuple[int, int, int], num_classes: int, device: torch.device
    ) -> None:
        self.images = torch.empty(capacity, *image_shape, dtype=torch.uint8, device=device)
        self.answers = torch.empty(capacity, num_classes, device=device)
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, len(self.images))

    def add(self, images: Tensor, answers: Tensor) -> None:
        """Keep images (N, C, H, W) in [0, 1], rounded to 8 bits, and answers (N, K); of too many, the last ones."""
        capacity = len(self.images)
        skipped = max(0, len(images) - capacity)
        places = torch.arange(self.added + skipped, self.added + len(images), device=self.images.device) % capacity
        self.images[places] = to_bytes(images[skipped:])
        self.answers[places] = answers[skipped:]
        self.added += len(images)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] and answers (N, K), drawn alike and with replacement from all that is kept."""
        return self.take(torch.randint(len(self), (count,), generator=generator, device=self.images.device))

    def take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] and answers (N, K) at the given places (N,), all less than the length."""
        return from_bytes(self.images[places]), self.answers[places]

    def nbytes(self) -> int:
        """Memory taken, whether full or not."""
        return sum(tensor.nbytes for tensor in (self.images, self.answers))

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and how many images have been: the places not filled yet would only take room."""
        filled = slice(len(self))
        return {"images": self.images[filled].clone(), "answers": self.answers[filled].clone(), "added": self.added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.added = state["added"]
        filled = slice(len(self))
        self.images[filled] = state["images"].to(self.images.device)
        self.answers[filled] = state["answers"].to(self.answers.device)


def to_bytes(images: Tensor) -> Tensor:
    """Pixels in [0, 1] as 8-bit ones, rounded."""
    return (images * 255).round().to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """8-bit pixels as ones in [0, 1]."""
    return images.float() / 255


def quantize(images: Tensor) -> Tensor:
    """Images rounded to the 256 levels of an 8-bit image."""
    return (images * 255).round() / 255
