"""Data sets: tiny files in exactly the published formats, the real ones if any, and all that can fail."""

import gzip
import hashlib
import os
import pickle
import re
import shutil
import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.components import names
from msbench.errors import BadParameter, MissingData, UnknownName, UsageError
from msbench.targets.datasets import downloadable, loading
from msbench.targets.datasets.base import Dataset, FileImages, Images, Split, TensorImages, fit_to
from msbench.targets.datasets.downloadable import TorchvisionDataset
from msbench.targets.datasets.loading import default_data_dir, load_dataset, resize_pool
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torchvision import datasets as torchvision_datasets

SPLITS: tuple[Split, Split] = ("train", "test")
NOWHERE = Path("nowhere")


@pytest.fixture(autouse=True)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few images are whole, but for tests that are about real ones."""
    if "real" not in request.fixturenames:
        for name in ("MNIST", "FashionMNIST", "SVHN", "GTSRB", "CIFAR10", "CIFAR100"):
            monkeypatch.setattr(getattr(downloadable, name), "sizes", {})


def load(dataset: Dataset, split: Split, root: Path = NOWHERE, *, download: bool = False) -> Images:
    return dataset.load(split, data_dir=root, download=download, device="cpu")


def everything(images: Images) -> tuple[Tensor, Tensor]:
    return images.take(torch.arange(len(images)))


def random_pixels(count: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_holds(images: Images, pixels: Tensor, labels: list[int]) -> None:
    found, found_labels = everything(images)
    assert found.dtype == torch.float32
    assert found_labels.dtype == torch.int64
    assert torch.equal(found, pixels.float() / 255)
    assert found_labels.tolist() == labels


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------ tiny published files


def idx(values: Tensor) -> bytes:
    """The format of the MNIST files: two zeros, 8 for bytes, the rank, big-endian sizes, the values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.numpy().tobytes()


def write_mnist(root: Path, folder: str, pixels: Tensor, labels: list[int], *, zipped: bool = False) -> None:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", pixels), ("labels-idx1", torch.tensor(labels).byte())):
            file = raw / f"{part}-{kind}-ubyte"
            if zipped:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                file.write_bytes(idx(values))


def write_svhn(root: Path, pixels: Tensor, labels: list[int], patch: pytest.MonkeyPatch) -> None:
    """Height first and image last; the digit 0 has the label 10."""
    parts = {}
    for part in SPLITS:
        file = root / f"{part}_32x32.mat"
        column = np.array([[label or 10] for label in labels], dtype=np.uint8)
        savemat(file, {"X": pixels.permute(2, 3, 1, 0).numpy(), "y": column})
        parts[part] = ["", file.name, md5(file)]
    patch.setattr(torchvision_datasets.SVHN, "split_list", parts)


def write_batch(file: Path, pixels: Tensor, labels: list[int], key: str) -> list[str]:
    """One pickled batch, with dtypes spelled as in the published files, which Python 2 wrote."""
    data = pickle.dumps({"data": pixels.flatten(1).numpy(), key: labels}, protocol=2)
    data, changes = re.subn(rb"\x89\x88(?=\x87q.R)", b"K\x00K\x01", data)  # False, True: 0, 1
    assert changes == 1
    file.write_bytes(data)
    return [file.name, md5(file)]


def write_cifar(root: Path, pixels: Tensor, labels: list[int], patch: pytest.MonkeyPatch, kind: Any) -> None:
    """Each batch of CIFAR-10 holds a fifth of the images; the integrity check is given the new digests."""
    folder = root / kind.base_folder
    folder.mkdir()
    key = "labels" if kind is torchvision_datasets.CIFAR10 else "fine_labels"
    for attribute in ("train_list", "test_list"):
        files = [name for name, _ in getattr(kind, attribute)]
        share = len(labels) // len(files)
        digests = [
            write_batch(folder / name, pixels[i * share : (i + 1) * share], labels[i * share : (i + 1) * share], key)
            for i, name in enumerate(files)
        ]
        patch.setattr(kind, attribute, digests)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [str(label) for label in sorted(set(labels))]}))
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})


def two_colors(width: int, height: int, left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (width, height), left)
    image.paste(right, (width // 2, 0, width, height))
    return image


def write_gtsrb(root: Path) -> None:
    """43 classes; the images differ in size, left half (label, 10, 20), right half (200, 210, label)."""
    test = root / "gtsrb/GTSRB/Final_Test/Images"
    test.mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        image = two_colors(20 + 2 * label, 50 + label, (label, 10, 20), (200, 210, label))
        folder = root / f"gtsrb/GTSRB/Training/{label:05d}"
        folder.mkdir(parents=True)
        image.save(folder / "00000_00000.ppm")
        image.save(test / f"{42 - label:05d}.ppm")
        rows.insert(1, f"{42 - label:05d}.ppm;{image.width};{image.height};5;5;9;9;{label}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(rows))


def write_imagenet(root: Path, *, classes: int = 1000) -> None:
    wnids = [f"n{i:08d}" for i in range(1000)]
    image = root / "left_red_right_blue.png"
    two_colors(512, 256, (255, 0, 0), (0, 0, 255)).save(image)
    for wnid in wnids[:classes]:
        folder = root / "imagenet" / "val" / wnid
        folder.mkdir(parents=True)
        os.link(image, folder / "ILSVRC2012_val_00000001.JPEG")
    torch.save(({wnid: (wnid,) for wnid in wnids}, wnids), root / "imagenet" / "meta.bin")


def write_folders(root: Path, *, test: str = "test") -> None:
    for part in ("train", test):
        for name, left in (("cat", (250, 0, 0)), ("dog", (0, 250, 0))):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                two_colors(12, 8, left, (i, i, 200)).save(folder / f"{i}.png")


# --------------------------------------------------------------------------------------------------- embedded


def test_digits_are_split_by_class_and_disjoint() -> None:
    train, test = (load(load_dataset("digits"), split) for split in SPLITS)
    assert isinstance(train, TensorImages)
    assert isinstance(test, TensorImages)
    assert (len(train), len(test)) == (1347, 450)
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert share.sub(0.25).abs().max() < 0.005
    rows = {row.tobytes() for row in torch.cat([train.pixels, test.pixels]).flatten(1).numpy()}
    assert len(rows) == 1797


def test_digits_keep_the_ink_of_the_source() -> None:
    loaded = torch.cat([everything(load(load_dataset("digits"), split))[0] for split in SPLITS])
    ink = torch.from_numpy(load_digits().images).float() / 16
    assert loaded.shape == (1797, 1, 8, 8)
    assert loaded.sum((1, 2, 3)).sort().values.sub(ink.sum((1, 2)).sort().values).abs().max() < 64 * 0.002
    assert len(set(loaded.flatten().tolist())) == 17


@pytest.mark.parametrize("name", ["digits", "patches"])
def test_embedded_sets_are_the_same_every_time_and_leave_global_generators_alone(name: str) -> None:
    before, numpy_before = torch.random.get_rng_state(), str(np.random.get_state())
    first, second = (everything(load(load_dataset(name), "test")) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert str(np.random.get_state()) == numpy_before


@pytest.fixture(scope="module")
def patches() -> tuple[TensorImages, TensorImages]:
    train, test = (load(load_dataset("patches"), split) for split in SPLITS)
    assert isinstance(train, TensorImages)
    assert isinstance(test, TensorImages)
    return train, test


def test_patches_are_many_disjoint_and_not_flat(patches: tuple[TensorImages, TensorImages]) -> None:
    train, test = patches
    assert train.pixels.shape == (60_000, 3, 32, 32)
    assert test.pixels.shape == (2_000, 3, 32, 32)
    assert train.pixels.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [30_000, 30_000]
    assert test.labels.bincount().tolist() == [1_000, 1_000]
    seen = {row.tobytes() for row in train.pixels.flatten(1).numpy()}
    assert len(seen) > 59_900
    assert sum(row.tobytes() in seen for row in test.pixels.flatten(1).numpy()) < 10
    contrast = test.pixels.flatten(2).amax(2).int() - test.pixels.flatten(2).amin(2).int()
    assert contrast.amax(1).min() >= 32


def test_every_prefix_of_the_patches_holds_both_photographs(
    patches: tuple[TensorImages, TensorImages],
) -> None:
    _, labels = patches[0].take(torch.arange(800))
    assert labels.bincount().tolist() == [400, 400]


def test_patches_are_crops_of_the_photographs(patches: tuple[TensorImages, TensorImages]) -> None:
    crop = patches[1].pixels[0].permute(1, 2, 0).numpy()  # the first view is the first photograph, unscaled
    photo = load_sample_images().images[0]
    corners = np.argwhere((photo[: 1 - 32, : 1 - 32] == crop[0, 0]).all(axis=2))
    assert any(np.array_equal(photo[y : y + 32, x : x + 32], crop) for y, x in corners)


# ----------------------------------------------------------------------------------------------- downloadable


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_files(tmp_path: Path, name: str, folder: str, zipped: bool) -> None:
    pixels, labels = random_pixels(20, 28, 28), [*range(10), *range(10)]
    write_mnist(tmp_path, folder, pixels, labels, zipped=zipped)
    before = sorted(tmp_path.rglob("*"))
    for split in SPLITS:
        assert_holds(load(load_dataset(name), split, tmp_path), pixels.unsqueeze(1), labels)
    assert sorted(tmp_path.rglob("*")) == before


def test_svhn_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = random_pixels(20, 3, 32, 32), [*range(10), *range(10)]
    write_svhn(tmp_path, pixels, labels, monkeypatch)
    for split in SPLITS:
        assert_holds(load(load_dataset("svhn"), split, tmp_path), pixels, labels)


@pytest.mark.parametrize(
    ("name", "kind", "classes"),
    [("cifar10", torchvision_datasets.CIFAR10, 10), ("cifar100", torchvision_datasets.CIFAR100, 100)],
)
def test_cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any, classes: int) -> None:
    pixels, labels = random_pixels(classes, 3, 32, 32), list(range(classes))[::-1]
    write_cifar(tmp_path, pixels, labels, monkeypatch, kind)
    for split in SPLITS:
        assert_holds(load(load_dataset(name), split, tmp_path), pixels, labels)


def test_gtsrb_files(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    for split in SPLITS:
        images, labels = everything(load(load_dataset("gtsrb"), split, tmp_path))
        assert images.shape == (43, 3, 32, 32)
        assert labels.tolist() == list(range(43))[:: 1 if split == "train" else -1]
        left, right = images[..., 4] * 255, images[..., -5] * 255
        expected = torch.tensor([[[label, 10, 20], [200, 210, label]] for label in labels.tolist()]).float()
        assert torch.allclose(left, expected[:, 0].unsqueeze(2).expand_as(left))
        assert torch.allclose(right, expected[:, 1].unsqueeze(2).expand_as(right))


DIGIT_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize(
    ("name", "folder", "counts", "mean"),
    [("mnist", "MNIST", DIGIT_COUNTS, 0.1307), ("fashion_mnist", "FashionMNIST", [6000] * 10, 0.2860)],
)
def test_real_mnist(real: Path, name: str, folder: str, counts: list[int], mean: float) -> None:
    if not (real / folder).is_dir():
        pytest.skip(f"no {folder} in {real}")
    train, test = (load(load_dataset(name), split, real) for split in SPLITS)
    assert isinstance(train, TensorImages)
    assert len(test) == 10_000
    assert train.pixels.shape == (60_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == counts
    assert (train.pixels.min().item(), train.pixels.max().item()) == (0, 255)
    assert train.pixels.sum().item() / train.pixels.numel() / 255 == pytest.approx(mean, abs=1e-4)


# --------------------------------------------------------------------------------------------------- folders


def test_imagenet_files(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    images = load(load_dataset("imagenet"), "test", tmp_path)
    assert len(images) == 1000
    pixels, labels = images.take(torch.tensor([0, 999]))
    assert pixels.shape == (2, 3, 224, 224)
    assert labels.tolist() == [0, 999]
    assert pixels[0, :, 100, 3].tolist() == [1, 0, 0]
    assert pixels[1, :, 100, -3].tolist() == [0, 0, 1]


def test_imagenet_knows_its_shape_without_files() -> None:
    dataset = load_dataset("imagenet")
    assert (dataset.num_classes, dataset.image_shape) == (1000, (3, 224, 224))


def test_imagenet_with_folders_lacking_is_refused(tmp_path: Path) -> None:
    write_imagenet(tmp_path, classes=3)
    with pytest.raises(MissingData, match="3 class folders, not 1000") as error:
        load(load_dataset("imagenet"), "test", tmp_path)
    assert str(tmp_path) in one_line(error)


class Harm:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.folder,)


def test_imagenet_meta_file_cannot_do_harm(tmp_path: Path) -> None:
    write_imagenet(tmp_path, classes=1)
    torch.save(Harm(tmp_path / "harm"), tmp_path / "imagenet" / "meta.bin")
    with pytest.raises(MissingData) as error:
        load(load_dataset("imagenet"), "test", tmp_path)
    assert "meta.bin" in one_line(error)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("test", ["test", "val"])
def test_image_folder_files(tmp_path: Path, test: str) -> None:
    write_folders(tmp_path, test=test)
    dataset = load_dataset(f"imagefolder:{tmp_path},size=8")
    assert (dataset.num_classes, dataset.image_shape) == (2, (3, 8, 8))
    for split in SPLITS:
        images, labels = everything(load(dataset, split))
        assert images.shape == (6, 3, 8, 8)
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert (images[2, :, 0, 0] * 255).tolist() == [250, 0, 0]
        assert (images[5, :, 7, 7] * 255).tolist() == [2, 2, 200]


def test_image_folder_turns_gray_into_color(tmp_path: Path) -> None:
    write_folders(tmp_path)
    Image.new("L", (9, 9), 51).save(tmp_path / "train" / "cat" / "0.png")
    images, _ = load(load_dataset(f"imagefolder:{tmp_path},size=4"), "train").take(torch.tensor([0]))
    assert torch.equal(images, torch.full((1, 3, 4, 4), 51 / 255))


def pets(folder: Path, *, test: str = "test") -> Path:
    write_folders(folder / "pets", test=test)
    return folder / "pets"


def folder_identity(path: Path | str) -> str:
    return load_dataset(f"imagefolder:{path}").identity()


def test_an_image_folder_is_the_same_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = pets(tmp_path / "somebody")
    identity = folder_identity(here)
    assert re.fullmatch(r"imagefolder:path=pets@[0-9a-f]{12}", identity)
    there = pets(tmp_path / "elsewhere", test="val")
    (there / "train" / "cat" / ".DS_Store").touch()  # left behind by whatever shows folders
    monkeypatch.chdir(there)
    monkeypatch.setenv("HOME", str(there.parent))
    for path in (there, f"{there}/", ".", "../pets", "train/..", "~/pets"):
        assert folder_identity(path) == identity
    assert load_dataset(f"imagefolder:{here},size=64").identity() == f"{identity},size=64"


def another_name(folder: Path) -> Path:
    return folder.rename(folder.with_name("dogs"))


def another_image(folder: Path) -> Path:
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "cat" / "3.png")
    return folder


def another_test_image(folder: Path) -> Path:
    (folder / "test" / "cat" / "0.png").rename(folder / "test" / "cat" / "3.png")
    return folder


def another_class(folder: Path) -> Path:
    for split in SPLITS:
        (folder / split / "cat").rename(folder / split / "lion")
    return folder


def another_size(folder: Path) -> Path:
    with (folder / "test" / "dog" / "2.png").open("ab") as file:
        file.write(b"\0")
    return folder


@pytest.mark.parametrize("change", [another_name, another_image, another_test_image, another_class, another_size])
def test_an_image_folder_that_changes_is_another(tmp_path: Path, change: Callable[[Path], Path]) -> None:
    folder = pets(tmp_path)
    before = folder_identity(folder)
    assert folder_identity(change(folder)) != before


def test_other_data_sets_are_known_by_name_parameters_and_version(tmp_path: Path) -> None:
    for name in names("dataset"):
        if name != "imagefolder":
            assert load_dataset(name).identity() == name
    file = tmp_path / "own.py"
    file.write_text("from msbench.targets.datasets.embedded import Digits\n\nclass Own(Digits):\n    pass\n")
    assert re.fullmatch(r"own\.py:Own@1\+[0-9a-f]{8}", load_dataset(f"{file}:Own").identity())


def unknown_folder(root: Path) -> str:
    return f"imagefolder:{root / 'nowhere'}"


def no_classes(root: Path) -> str:
    for part in SPLITS:
        (root / part).mkdir()
    return f"imagefolder:{root}"


def no_test(root: Path) -> str:
    (root / "train" / "cat").mkdir(parents=True)
    return f"imagefolder:{root}"


def odd_class(root: Path) -> str:
    write_folders(root)
    (root / "test" / "bird").mkdir()
    return f"imagefolder:{root}"


def empty_class(root: Path) -> str:
    write_folders(root)
    for image in (root / "train" / "cat").iterdir():
        image.unlink()
    return f"imagefolder:{root}"


@pytest.mark.parametrize(
    ("prepare", "error", "says"),
    [
        (unknown_folder, MissingData, "no folder train"),
        (no_classes, MissingData, "no class folders"),
        (no_test, MissingData, "no folder test or val"),
        (odd_class, UsageError, "bird"),
        (empty_class, MissingData, "cat"),
        (lambda _: "imagefolder", UsageError, "write imagefolder:PATH"),
    ],
)
def test_unusable_image_folders_are_refused_in_one_line(
    tmp_path: Path, prepare: Callable[[Path], str], error: type[Exception], says: str
) -> None:
    dataset = load_dataset(prepare(tmp_path))
    for attempt in (partial(load, dataset, "train"), dataset.identity):
        with pytest.raises(error, match=says) as raised:
            attempt()
        assert one_line(raised).startswith("imagefolder: ")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    damaged = tmp_path / "train" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    images = load(load_dataset(f"imagefolder:{tmp_path}"), "train")
    with pytest.raises(MissingData, match=re.escape(str(damaged))) as error:
        images.take(torch.tensor([4]))
    one_line(error)


# ------------------------------------------------------------------------------ absent, damaged, downloaded

DOWNLOADABLE = ["mnist", "fashion_mnist", "svhn", "gtsrb", "cifar10", "cifar100"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", DOWNLOADABLE)
def test_absent_files_are_named(tmp_path: Path, name: str, split: Split) -> None:
    dataset = load_dataset(name)
    assert isinstance(dataset, TorchvisionDataset)
    with pytest.raises(MissingData, match=f"^{name}: files are absent") as error:
        load(dataset, split, tmp_path)
    message = one_line(error)
    assert str(tmp_path) in message
    assert "--data-dir" in message
    assert all(file in message for file in dataset.files(split))
    assert not list(tmp_path.iterdir())


def test_only_what_is_absent_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST", random_pixels(10, 28, 28), list(range(10)))
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").unlink()
    with pytest.raises(MissingData, match="put MNIST/raw/train-labels-idx1-ubyte into"):
        load(load_dataset("mnist"), "train", tmp_path)


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "val")])
def test_imagenet_says_what_is_absent(tmp_path: Path, split: Split, part: str) -> None:
    with pytest.raises(MissingData, match=f"ILSVRC2012_img_{part}.tar") as error:
        load(load_dataset("imagenet"), split, tmp_path, download=True)
    assert str(tmp_path) in one_line(error)
    (tmp_path / "imagenet" / part).mkdir(parents=True)
    with pytest.raises(MissingData, match=r"ILSVRC2012_devkit_t12\.tar\.gz"):
        load(load_dataset("imagenet"), split, tmp_path)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def damage_idx(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_mnist(root, "MNIST", random_pixels(10, 28, 28), list(range(10)))
    cut(root / "MNIST/raw/train-images-idx3-ubyte")
    return "mnist"


def damage_gzip(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_mnist(root, "FashionMNIST", random_pixels(10, 28, 28), list(range(10)), zipped=True)
    cut(root / "FashionMNIST/raw/train-images-idx3-ubyte.gz")
    return "fashion_mnist"


def empty_idx(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_mnist(root, "MNIST", random_pixels(10, 28, 28), list(range(10)))
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(b"")
    return "mnist"


def lose_a_class(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_mnist(root, "MNIST", random_pixels(10, 28, 28), [*range(9), 8])
    return "mnist"


def other_shape(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_mnist(root, "MNIST", random_pixels(10, 32, 32), list(range(10)))
    return "mnist"


def damage_mat(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_svhn(root, random_pixels(10, 3, 32, 32), list(range(10)), patch)
    cut(root / "train_32x32.mat")
    return "svhn"


def damage_batch(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_cifar(root, random_pixels(10, 3, 32, 32), list(range(10)), patch, torchvision_datasets.CIFAR10)
    cut(root / "cifar-10-batches-py/data_batch_3")
    return "cifar10"


def damage_ppm(root: Path, patch: pytest.MonkeyPatch) -> str:
    write_gtsrb(root)
    cut(root / "gtsrb/GTSRB/Training/00007/00000_00000.ppm")
    return "gtsrb"


@pytest.mark.parametrize(
    "damage",
    [damage_idx, damage_gzip, empty_idx, lose_a_class, other_shape, damage_mat, damage_batch, damage_ppm],
)
def test_damaged_files_are_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path, pytest.MonkeyPatch], str],
) -> None:
    name = damage(tmp_path, monkeypatch)
    with pytest.raises(MissingData, match=f"^{name}: cannot read ") as error:
        load(load_dataset(name), "train", tmp_path)
    assert str(tmp_path) in one_line(error)


def test_a_pickle_with_another_digest_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, random_pixels(10, 3, 32, 32), list(range(10)), monkeypatch, torchvision_datasets.CIFAR10)
    batch = tmp_path / "cifar-10-batches-py/data_batch_1"
    batch.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(MissingData):
        load(load_dataset("cifar10"), "train", tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("cause", [URLError("no route"), TimeoutError("timed\nout"), RuntimeError("bad digest")])
@pytest.mark.parametrize("name", DOWNLOADABLE)
def test_a_failed_download_is_missing_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    cause: Exception,
) -> None:
    timeouts = []

    def refuse(*_: object, **__: object) -> NoReturn:
        timeouts.append(socket.getdefaulttimeout())
        raise cause

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(MissingData, match=f"^{name}: the download failed: put ") as error:
        load(load_dataset(name), "train", tmp_path, download=True)
    assert str(cause).split()[0] in one_line(error)
    assert timeouts
    assert set(timeouts) == {10.0}
    assert socket.getdefaulttimeout() is None
    assert capsys.readouterr() == ("", "")


def test_a_set_that_is_not_whole_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, "MNIST", random_pixels(10, 28, 28), list(range(10)))
    monkeypatch.setattr(downloadable.MNIST, "sizes", {"train": 60_000, "test": 10})
    assert len(load(load_dataset("mnist"), "test", tmp_path)) == 10
    with pytest.raises(MissingData, match="10 images, where train has 60000"):
        load(load_dataset("mnist"), "train", tmp_path)


def test_nothing_of_a_download_that_broke_off_is_taken_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("svhn")
    assert isinstance(dataset, TorchvisionDataset)
    (file,) = dataset.files("train")
    complete = []

    def fetch(self: TorchvisionDataset, data_dir: Path, split: Split, *, download: bool = False) -> Any:
        if download and not complete:
            (data_dir / file).write_bytes(b"half")
            raise TimeoutError("stalled")
        raise RuntimeError("as far as this test goes")

    monkeypatch.setattr(downloadable.SVHN, "_open", fetch)
    for _ in range(2):
        with pytest.raises(MissingData, match=r"svhn: the download failed: .*stalled"):
            load(dataset, "train", tmp_path, download=True)
        assert not (tmp_path / file).exists()


class QuietHandler(SimpleHTTPRequestHandler):
    """A file server that keeps no log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which this machine serves it to itself."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_absent_files_are_downloaded_in_silence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    served: tuple[Path, str],
) -> None:
    folder, address = served
    pixels, labels = random_pixels(10, 28, 28), list(range(10))
    write_mnist(folder, "MNIST", pixels, labels, zipped=True)
    files = sorted((folder / "MNIST" / "raw").iterdir())
    kind = downloadable.MNIST.source
    monkeypatch.setattr(kind, "mirrors", [f"{address}MNIST/raw/"])
    monkeypatch.setattr(kind, "resources", [(file.name, md5(file)) for file in files])
    assert_holds(load(load_dataset("mnist"), "test", tmp_path / "new", download=True), pixels.unsqueeze(1), labels)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------ names and places


@pytest.mark.parametrize("name", names("dataset"))
def test_pools_exist_and_have_another_name(name: str) -> None:
    pool = load_dataset(name).pool
    assert pool != name
    assert pool is None or pool in names("dataset")


@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [
        ("digits", 10, (1, 8, 8)),
        ("patches", 2, (3, 32, 32)),
        ("mnist", 10, (1, 28, 28)),
        ("fashion_mnist", 10, (1, 28, 28)),
        ("svhn", 10, (3, 32, 32)),
        ("gtsrb", 43, (3, 32, 32)),
        ("cifar10", 10, (3, 32, 32)),
        ("cifar100", 100, (3, 32, 32)),
        ("imagenet", 1000, (3, 224, 224)),
    ],
)
def test_classes_and_shapes(name: str, classes: int, shape: tuple[int, int, int]) -> None:
    dataset = load_dataset(name)
    assert (dataset.num_classes, dataset.image_shape) == (classes, shape)
    assert dataset.grayscale_like_mnist == (shape[0] == 1)


def test_unknown_names_and_parameters() -> None:
    with pytest.raises(UnknownName, match="mnist"):
        load_dataset("mnits")
    with pytest.raises(BadParameter, match="side"):
        load_dataset("imagefolder:somewhere,side=3")
    with pytest.raises(BadParameter, match="size"):
        load_dataset("imagefolder:somewhere,size=0")


@pytest.mark.parametrize("spec", ["imagefolder:some/where,size=64", "imagefolder:path=some/where,size=64"])
def test_image_folder_specs(spec: str) -> None:
    dataset = load_dataset(spec)
    assert dataset.params() == {"path": "some/where", "size": 64}
    assert load_dataset(str(dataset)) == dataset


def test_data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MSBENCH_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.setenv("MSBENCH_DATA", "")
    assert default_data_dir().parts[-2:] == ("msbench", "datasets")


# ------------------------------------------------------------------------------------ ways to hold images


class Pairs:
    """The map-style data set that `FileImages` decodes from."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index].float() / 255, int(self.labels[index])


def both_holders() -> tuple[TensorImages, FileImages]:
    pixels, labels = random_pixels(11, 3, 6, 6), torch.arange(11) % 4
    return TensorImages(pixels, labels), FileImages(Pairs(pixels, labels))


def test_both_holders_take_the_same() -> None:
    indices = torch.tensor([7, 0, 7, 10])
    held, decoded = (images.take(indices) for images in both_holders())
    assert torch.equal(held[0], decoded[0])
    assert torch.equal(held[1], decoded[1])
    assert held[1].dtype == decoded[1].dtype == torch.int64


@pytest.mark.parametrize("order", [None, torch.tensor([3, 3, 9, 0, 1])])
def test_batches_are_what_take_gives(order: Tensor | None) -> None:
    for images in both_holders():
        batches = list(images.batches(4, order=order))
        pixels, labels = images.take(torch.arange(11) if order is None else order)
        assert [len(batch) for _, batch in batches] == [4] * (len(labels) // 4) + [len(labels) % 4]
        assert torch.equal(torch.cat([batch for batch, _ in batches]), pixels)
        assert torch.equal(torch.cat([batch for _, batch in batches]), labels)


def test_reading_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    for images in both_holders():
        list(images.batches(4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_pool_takes_the_shape_of_the_target() -> None:
    for images in both_holders():
        pool = resize_pool(images, (1, 4, 5))
        pixels, labels = everything(pool)
        assert len(pool) == 11
        assert torch.equal(pixels, fit_to(everything(images)[0], (1, 4, 5)))
        assert torch.equal(labels, everything(images)[1])
        assert torch.equal(torch.cat([batch for batch, _ in pool.batches(4)]), pixels)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_pool_that_is_kept_is_converted_once_and_one_of_files_is_not_read_in_advance(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "KEEP_BYTES", limit)
    asked: list[int] = []
    for images in both_holders():
        take = images.take
        monkeypatch.setattr(images, "take", lambda indices, take=take: (asked.append(len(indices)), take(indices))[1])
        pool = resize_pool(images, (1, 4, 5))
        asked.clear()
        few = torch.tensor([7, 2])
        first, again = pool.take(few), pool.take(few)
        assert asked == ([11] if limit and isinstance(images, TensorImages) else [2, 2])
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[0], fit_to(take(few)[0], (1, 4, 5)))
        assert torch.equal(first[1], take(few)[1])


SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40))


@settings(deadline=None, max_examples=40)
@given(SHAPES, SHAPES, st.integers(0, 2**16))
def test_fit_to_gives_the_shape_and_keeps_the_range(
    have: tuple[int, int, int], want: tuple[int, int, int], seed: int
) -> None:
    images = torch.rand((2, *have), generator=torch.Generator().manual_seed(seed))
    fitted = fit_to(images, want)
    assert fitted.shape == (2, *want)
    assert fitted.min() >= images.min() - 1e-6
    assert fitted.max() <= images.max() + 1e-6
    if have == want:
        assert torch.equal(fitted, images)


@settings(deadline=None, max_examples=20)
@given(SHAPES, SHAPES, st.floats(0, 1, width=32))
def test_fit_to_keeps_plain_gray(have: tuple[int, int, int], want: tuple[int, int, int], level: float) -> None:
    assert torch.allclose(fit_to(torch.full((1, *have), level), want), torch.tensor(level), atol=1e-6)


def test_fit_to_weighs_colors_and_repeats_gray() -> None:
    colors = torch.eye(3).view(3, 3, 1, 1)
    assert fit_to(colors, (1, 1, 1)).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    gray = torch.rand((2, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit_to(gray, (3, 5, 5)), gray.repeat(1, 3, 1, 1))
    assert torch.allclose(fit_to(fit_to(gray, (3, 5, 5)), (1, 5, 5)), gray)
