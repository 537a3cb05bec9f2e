"""Data sets that need no network and no files: they ship with scikit-learn.

`Digits` is what targets are trained on where nothing else is at hand; `Patches` is the attacker's pool beside
it. Both are drawn by a fixed seed of NumPy's legacy generator, whose stream is frozen, and by exact integer
arithmetic: every machine sees the same images in the same order.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from ...components import Paper
from .base import Dataset, Split, TensorImages

_Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(kw_only=True)
class Digits(Dataset):
    """Handwritten digits, 8x8 gray, 10 classes: 1,347 for training and 450 for test.

    The source counts ink from 0 to 16. It is kept as round(255 * ink / 16), which is one to one and, divided
    by 255, within 0.002 of ink / 16. Every fourth image of each class, in a fixed random order, is for test.
    """

    pool = "patches"
    grayscale_like_mnist = True
    paper: ClassVar[Paper | None] = Paper(
        key="alpaydin1998digits",
        title="Optical Recognition of Handwritten Digits",
        authors="Alpaydin, E. and Kaynak, C.",
        year=1998,
        venue="UCI Machine Learning Repository",
    )

    @property
    def num_classes(self) -> int:
        """10."""
        return 10

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(1, 8, 8)."""
        return 1, 8, 8

    def load(self, split: Split, *, data_dir: Path, download: bool, device: torch.device | str) -> TensorImages:
        """See `Dataset.load`; nothing can be missing."""
        bunch = load_digits()
        chosen = _stratified(bunch.target, split)
        ink = torch.from_numpy(bunch.images[chosen]).unsqueeze(1)
        labels = torch.from_numpy(bunch.target[chosen]).long()
        return TensorImages((ink * (255 / 16)).round().byte(), labels, device)


def _stratified(labels: NDArray[np.int64], split: Split) -> list[int]:
    """Indices of one split, in file order: every fourth shuffled image of a class is for test."""
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.arange(len(labels)) % 4 == 0
    return sorted(by_class[test if split == "test" else ~test].tolist())


_SIDE = 32
_SCALES = (1.0, 0.75, 0.5, 0.375)
_PER_VIEW: dict[Split, slice] = {"train": slice(0, 7_500), "test": slice(7_500, 7_750)}
"""Which of the shuffled positions of one photograph at one scale make a split: 60,000 and 2,000 in all."""
_CONTRAST = 32
"""Least difference, of 255, of the lightest and the darkest pixel in some channel: plain sky is left out."""


@dataclass(kw_only=True)
class Patches(Dataset):
    """Crops, 3x32x32, of two photographs at four scales: natural images without a download.

    It exists as an attacker's pool and as out-of-distribution data, not as a task: the labels say which
    photograph a crop is from (K = 2). 60,000 crops for training and 2,000 for test, no position twice and
    none in both splits, though crops overlap. Photographs and scales take turns: any prefix holds all in
    equal parts.
    """

    @property
    def num_classes(self) -> int:
        """2: the temple and the flower."""
        return 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, 32, 32)."""
        return 3, _SIDE, _SIDE

    def load(self, split: Split, *, data_dir: Path, download: bool, device: torch.device | str) -> TensorImages:
        """See `Dataset.load`; nothing can be missing."""
        photos = load_sample_images().images
        views = [(label, _shrunk(photo, scale)) for label, photo in enumerate(photos) for scale in _SCALES]
        chosen = _PER_VIEW[split]
        per_view = chosen.stop - chosen.start
        pixels = torch.empty((len(views) * per_view, *self.image_shape), dtype=torch.uint8)
        for turn, (_, view) in enumerate(views):
            pixels[turn :: len(views)] = _crops(view, chosen)
        labels = torch.tensor([label for label, _ in views]).repeat(per_view)
        return TensorImages(pixels, labels, device)


def _shrunk(photo: _Pixels, scale: float) -> _Pixels:
    """A photograph (H, W, 3), smaller. Pillow resamples in integers, antialiased."""
    height, width, _ = photo.shape
    size = round(width * scale), round(height * scale)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))


def _crops(view: _Pixels, chosen: slice) -> Tensor:
    """The chosen ones, uint8 (N, 3, 32, 32), of all crops that are not flat, in a fixed random order."""
    windows = np.lib.stride_tricks.sliding_window_view(view, (_SIDE, _SIDE), axis=(0, 1))  # no copy
    rows, columns = (_contrast(view) >= _CONTRAST).nonzero()
    order = np.random.RandomState(0).permutation(len(rows))[chosen]
    return torch.from_numpy(windows[rows[order], columns[order]])


def _contrast(view: _Pixels) -> _Pixels:
    """Lightest minus darkest pixel of the crop at every position (rows, columns), in the channel of most."""
    return np.asarray((_of_crops(np.maximum, view) - _of_crops(np.minimum, view)).max(axis=2))


def _of_crops(extreme: np.ufunc, view: _Pixels) -> _Pixels:
    """The extreme of the crop at every position: of two halves, each of which is that of two halves again."""
    reach = 1
    while reach < _SIDE:
        view = extreme(view[:-reach], view[reach:])
        view = extreme(view[:, :-reach], view[:, reach:])
        reach *= 2
    return view
