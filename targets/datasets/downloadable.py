"""Data sets that torchvision can fetch, small enough to be held in memory as uint8.

torchvision's own readers are used, and its own layout below the data directory: what another project fetched
with it is found. Nothing is written unless something is absent and may be downloaded.
"""

import gzip
import io
import shutil
import socket
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor, resize

from ...components import Paper
from ...files import alone
from .base import Dataset, Split, TensorImages, missing, read_image

_TIMEOUT = 10.0
"""Seconds without an answer from a server after which a download is given up."""


@dataclass(kw_only=True)
class TorchvisionDataset(Dataset):
    """Base of the data sets here; a subclass says which torchvision class reads it and what comes out."""

    source: ClassVar[Any]
    """torchvision's class."""
    classes: ClassVar[int] = 10
    """K."""
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    """(C, H, W)."""
    sizes: ClassVar[Mapping[Split, int]] = {"train": 50_000, "test": 10_000}
    """N."""

    @property
    def num_classes(self) -> int:
        """K."""
        return self.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.shape

    def load(self, split: Split, *, data_dir: Path, download: bool, device: torch.device | str) -> TensorImages:
        """See `Dataset.load`. A damaged file raises `MissingData`, too."""
        if self._absent(data_dir, split):
            self._fetch(data_dir, split, download)
        try:
            pixels, labels = self._tensors(self._open(data_dir, split))
            self._check(split, pixels, labels)
        except Exception as error:  # the readers fail in many ways on a damaged file: struct, pickle, zlib, …
            files = ", ".join(self.files(split))
            way_out = "replace what is damaged, or choose another place with --data-dir DIR (MSBENCH_DATA)"
            raise missing(f"{self.label()}: cannot read {files} in {data_dir}: {way_out}", error) from error
        return TensorImages(pixels, labels, device)

    @abstractmethod
    def files(self, split: Split) -> list[str]:
        """What torchvision reads for a split, relative to the data directory."""

    def _arguments(self, split: Split) -> dict[str, Any]:
        return {"train": split == "train"}

    def _open(self, data_dir: Path, split: Split, *, download: bool = False) -> Any:
        return self.source(data_dir, **self._arguments(split), download=download)

    @abstractmethod
    def _tensors(self, source: Any) -> tuple[Tensor, Tensor]:
        """Pixels, uint8 (N, C, H, W), and labels, int64 (N,)."""

    def _absent(self, data_dir: Path, split: Split) -> list[str]:
        return [file for file in self.files(split) if not (data_dir / file).exists()]

    def _fetch(self, data_dir: Path, split: Split, allowed: bool) -> None:
        failure = None
        if allowed:
            with alone(data_dir / self.label()):  # what another process is still writing is no file yet
                failure = self._download(data_dir, split)
        absent = self._absent(data_dir, split)
        if absent or failure:
            what = "the download failed" if failure else "files are absent"
            way_out = "or say where they are with --data-dir DIR (MSBENCH_DATA)"
            message = f"{self.label()}: {what}: put {', '.join(absent or self.files(split))} into {data_dir}, {way_out}"
            raise missing(message, failure) from failure

    def _download(self, data_dir: Path, split: Split) -> Exception | None:
        """Fetch what is absent, or nothing: a file that came in part would be taken for a whole one the next time."""
        absent = self._absent(data_dir, split)
        if not absent:
            return None
        try:
            with _quick_and_quiet():
                self._open(data_dir, split, download=True)
        except Exception as error:  # no network, a full disk, a page of HTML instead of an archive
            for name in absent:
                for path in (data_dir / name, data_dir / f"{name}.gz"):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
            return error
        return None

    def _check(self, split: Split, pixels: Tensor, labels: Tensor) -> None:
        if len(labels) != self.sizes.get(split, len(labels)):
            raise ValueError(f"{len(labels)} images, where {split} has {self.sizes[split]}")
        if pixels.shape != (len(labels), *self.shape):
            raise ValueError(f"images {tuple(pixels.shape)} for {len(labels)} labels, want {self.shape}")
        if sorted(set(labels.tolist())) != list(range(self.classes)):
            raise ValueError(f"the labels are not all of 0 to {self.classes - 1} and no others")


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Let no server keep us waiting, and torchvision draw no progress bars."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


@dataclass(kw_only=True)
class MNIST(TorchvisionDataset):
    """Handwritten digits: 60,000 for training and 10,000 for test, gray 28x28, 10 classes.

    The files may be unzipped, as torchvision leaves them, or gzipped, as they are published.
    """

    pool = "fashion_mnist"
    grayscale_like_mnist = True
    source = datasets.MNIST
    shape = (1, 28, 28)
    sizes: ClassVar[Mapping[Split, int]] = {"train": 60_000, "test": 10_000}
    paper: ClassVar[Paper | None] = Paper(
        key="lecun1998gradient",
        title="Gradient-Based Learning Applied to Document Recognition",
        authors="LeCun, Y. and Bottou, L. and Bengio, Y. and Haffner, P.",
        year=1998,
        venue="Proceedings of the IEEE",
    )

    def files(self, split: Split) -> list[str]:
        """See `TorchvisionDataset.files`: all four, whatever the split."""
        return [f"{self.source.__name__}/raw/{name.removesuffix('.gz')}" for name, _ in self.source.resources]

    def _absent(self, data_dir: Path, split: Split) -> list[str]:
        absent = super()._absent(data_dir, split)
        return [file for file in absent if not (data_dir / f"{file}.gz").exists()]

    def _open(self, data_dir: Path, split: Split, *, download: bool = False) -> Any:
        if download or not super()._absent(data_dir, split):
            return super()._open(data_dir, split, download=download)
        # torchvision reads no gzip, and the data directory may be read-only.
        with TemporaryDirectory() as scratch:
            for file in self.files(split):
                _copy_unzipped(data_dir / file, Path(scratch, file))
            return super()._open(Path(scratch), split)

    def _tensors(self, source: Any) -> tuple[Tensor, Tensor]:
        return source.data.unsqueeze(1), source.targets


def _copy_unzipped(file: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") if file.exists() else gzip.open(f"{file}.gz") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)


@dataclass(kw_only=True)
class FashionMNIST(MNIST):
    """Articles of clothing, otherwise like MNIST: 60,000 for training and 10,000 for test, 10 classes."""

    pool = "mnist"
    source = datasets.FashionMNIST
    paper: ClassVar[Paper | None] = Paper(
        key="xiao2017fashion",
        title="Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
        authors="Xiao, H. and Rasul, K. and Vollgraf, R.",
        year=2017,
        arxiv="1708.07747",
    )


@dataclass(kw_only=True)
class SVHN(TorchvisionDataset):
    """Street view house numbers: 73,257 for training and 26,032 for test, color 32x32, 10 classes."""

    pool = "cifar10"
    source = datasets.SVHN
    sizes: ClassVar[Mapping[Split, int]] = {"train": 73_257, "test": 26_032}
    paper: ClassVar[Paper | None] = Paper(
        key="netzer2011reading",
        title="Reading Digits in Natural Images with Unsupervised Feature Learning",
        authors="Netzer, Y. and Wang, T. and Coates, A. and Bissacco, A. and Wu, B. and Ng, A. Y.",
        year=2011,
        venue="NIPS Workshop on Deep Learning and Unsupervised Feature Learning",
    )

    def files(self, split: Split) -> list[str]:
        """See `TorchvisionDataset.files`. torchvision checks the digest."""
        return [self.source.split_list[split][1]]

    def _arguments(self, split: Split) -> dict[str, Any]:
        return {"split": split}

    def _tensors(self, source: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(source.data).contiguous(), torch.from_numpy(source.labels)


@dataclass(kw_only=True)
class GTSRB(TorchvisionDataset):
    """German traffic signs: 26,640 for training and 12,630 for test, color, 43 classes.

    The photographs are 15 to 250 pixels wide; loading resizes them to 32x32, bilinear and antialiased.
    """

    pool = "cifar10"
    source = datasets.GTSRB
    classes = 43
    sizes: ClassVar[Mapping[Split, int]] = {"train": 26_640, "test": 12_630}
    paper: ClassVar[Paper | None] = Paper(
        key="stallkamp2012man",
        title="Man vs. Computer: Benchmarking Machine Learning Algorithms for Traffic Sign Recognition",
        authors="Stallkamp, J. and Schlipsing, M. and Salmen, J. and Igel, C.",
        year=2012,
        venue="Neural Networks",
    )

    def files(self, split: Split) -> list[str]:
        """See `TorchvisionDataset.files`."""
        if split == "train":
            return ["gtsrb/GTSRB/Training"]
        return ["gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"]

    def _arguments(self, split: Split) -> dict[str, Any]:
        return {"split": split}

    def _tensors(self, source: Any) -> tuple[Tensor, Tensor]:
        # Not the source's own items: where a file is damaged, they leave it open and do not name it.
        size = list(self.shape[1:])
        pixels = [pil_to_tensor(resize(read_image(path), size)) for path, _ in source._samples]
        return torch.stack(pixels), torch.tensor([label for _, label in source._samples])


@dataclass(kw_only=True)
class CIFAR10(TorchvisionDataset):
    """Tiny photographs: 50,000 for training and 10,000 for test, color 32x32, 10 classes."""

    pool = "cifar100"
    source = datasets.CIFAR10
    paper: ClassVar[Paper | None] = Paper(
        key="krizhevsky2009learning",
        title="Learning Multiple Layers of Features from Tiny Images",
        authors="Krizhevsky, A.",
        year=2009,
        venue="Technical report, University of Toronto",
    )

    def files(self, split: Split) -> list[str]:
        """See `TorchvisionDataset.files`: all, whatever the split.

        They are pickles; torchvision unpickles them only after their digests have been found right.
        """
        batches = [name for name, _ in self.source.train_list + self.source.test_list]
        return [f"{self.source.base_folder}/{name}" for name in [*batches, self.source.meta["filename"]]]

    def _open(self, data_dir: Path, split: Split, *, download: bool = False) -> Any:
        with warnings.catch_warnings():
            # The official pickles spell a dtype in a way that NumPy has deprecated since.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            return super()._open(data_dir, split, download=download)

    def _tensors(self, source: Any) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.tensor(source.targets)


@dataclass(kw_only=True)
class CIFAR100(CIFAR10):
    """Tiny photographs: 50,000 for training and 10,000 for test, color 32x32, 100 fine classes."""

    pool = "cifar10"
    source = datasets.CIFAR100
    classes = 100
