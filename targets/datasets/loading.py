"""Data sets by name, where their files are, and pools made to fit a target."""

import os
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import cast

import torch
from platformdirs import user_data_path
from torch import Tensor

from ...components import load
from .base import Dataset, Images, TensorImages, fit_to


def load_dataset(spec: str) -> Dataset:
    """The data set that a spec describes: ``NAME``, ``imagefolder:PATH`` or ``imagefolder:PATH,size=64``.

    No file is looked at yet. Raises `UnknownName`, `BadParameter` and whatever else `components.load` does.
    """
    spec = re.sub(r"^\s*imagefolder:(?!\w+=)", "imagefolder:path=", spec)
    return cast(Dataset, load("dataset", spec))


def default_data_dir() -> Path:
    """``MSBENCH_DATA`` where it is set, else ``datasets`` in the user's data directory for msbench."""
    chosen = os.environ.get("MSBENCH_DATA")
    return Path(chosen).expanduser() if chosen else user_data_path("msbench") / "datasets"


KEEP_BYTES = 256 * 2**20
"""Images in memory that take no more than this in float32 are kept once converted: clones pass over a pool often."""


def resize_pool(images: Images, shape: tuple[int, int, int]) -> Images:
    """The same images in another shape (C, H, W), converted by `fit_to` when one is first asked for."""
    return _Fitted(images, shape)


class _Fitted:
    """See `resize_pool`."""

    def __init__(self, images: Images, shape: tuple[int, int, int]) -> None:
        self._images = images
        self._shape = shape
        self._kept: tuple[Tensor, Tensor] | None = None
        self._keeps = isinstance(images, TensorImages) and 4 * len(images) * prod(shape) <= KEEP_BYTES

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Images.take`."""
        if self._keeps and self._kept is None:
            converted = list(self.batches(1024))
            self._kept = torch.cat([pixels for pixels, _ in converted]), torch.cat([labels for _, labels in converted])
        if self._kept is not None:
            pixels, labels = self._kept
            indices = indices.to(labels.device)
            return pixels[indices], labels[indices]
        images, labels = self._images.take(indices)
        return fit_to(images, self._shape), labels

    def batches(self, size: int, *, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Images.batches`."""
        for images, labels in self._images.batches(size, order=order):
            yield fit_to(images, self._shape), labels
