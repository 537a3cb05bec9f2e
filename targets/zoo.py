"""The target zoo: named targets, which come with msbench or are trained on first use and cached.

A target is named ``DATASET/ARCHITECTURE`` (``digits/lenet5``, ``cifar10/resnet34_8x``,
``imagefolder:PATH/resnet18``). The seed that it is trained with makes a copy of it: how much is stolen depends on the
copy. Weights are kept as safetensors with a JSON card beside them; `targets.reference` says which ones come with
msbench. An architecture with a timm tag (``imagenet/resnet50.a1_in1k``) or from the hub
(``imagenet/hf-hub:ORG/NAME``) brings its own weights. Nothing here unpickles.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..errors import BadCheckpoint, Interrupted, UsageError
from ..files import alone, write_atomically
from .architectures import build_network, check_architecture
from .datasets.base import Dataset, Images, Split
from .datasets.loading import default_data_dir, load_dataset
from .reference import FOLDER, Card, cards, read_card
from .target import Target
from .training import accuracy, channel_statistics, recipe_for, train


class Watcher(Protocol):
    """Who is told of a target's training; the benchmark's listener is one."""

    def phase(self, text: str) -> None:
        """A new part of the work begins."""

    def training(self, epoch: int, epochs: int, loss: float) -> None:
        """An epoch is done."""


@dataclass(frozen=True, kw_only=True)
class TargetName:
    """A target's name, taken apart."""

    dataset: Dataset
    dataset_spec: str
    architecture: str

    @property
    def brings_weights(self) -> bool:
        """Whether the architecture names pretrained weights (a timm tag, or the hub)."""
        bare = self.architecture.partition(":")[0]
        return self.architecture.startswith("hf-hub:") or "." in bare


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A target ready to be attacked."""

    target: Target
    dataset: Dataset
    card: Card
    path: Path | None
    """Where its weights are, unless they came from the hub."""


def parse_target(name: str) -> TargetName:
    """Take ``DATASET/ARCHITECTURE`` apart. Raises `UsageError` or `UnknownName` with the way out."""
    head, hub, tail = name.partition("/hf-hub:")
    dataset, slash, architecture = (head, "/", "hf-hub:" + tail) if hub else name.rpartition("/")
    if not (dataset and slash and architecture):
        raise UsageError(f"target {name!r} is not DATASET/ARCHITECTURE: write digits/lenet5, say")
    found = load_dataset(dataset)
    check_architecture(architecture)
    return TargetName(dataset=found, dataset_spec=dataset, architecture=architecture)


def describe_target(name: str, checkpoint: Path | None, seed: int = 0) -> dict[str, Any]:
    """The target as it stands in a run's spec: a recipe and a seed, or the digest of a checkpoint.

    Raises as `parse_target`, `BadCheckpoint`, `MissingData` for a data set that is known by its files alone, and
    `UsageError` for a seed where weights are given.
    """
    parsed = parse_target(name)
    if seed and (checkpoint is not None or parsed.brings_weights):
        raise UsageError(f"target seed {seed} is not usable: the weights of {name} are given, not trained")
    public = f"{parsed.dataset.identity()}/{parsed.architecture}"
    if checkpoint is not None:
        digest = hashlib.sha256(_read_checkpoint(checkpoint)).hexdigest()
        return {"name": public, "version": "checkpoint", "params": {"sha256": digest}}
    if parsed.brings_weights:
        return {"name": public, "version": "pretrained", "params": {}}
    recipe = recipe_for(parsed.dataset.label())
    return {"name": public, "version": recipe.version, "params": {"seed": seed}}


def load_target(
    name: str,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    data_dir: Path | None = None,
    download: bool = True,
    device: torch.device | str = "cpu",
    listener: Watcher | None = None,
    stop: threading.Event | None = None,
) -> Loaded:
    """Load a target that comes with msbench, from the cache or from a checkpoint, or train it and cache it.

    Args:
        seed: which copy, where it is trained; weights that are given have no copies.

    Raises `MissingData` where its data set is not there, `BadCheckpoint` for weights that do not fit or are damaged,
    and `Interrupted` where ``stop`` is set before a target that has to be trained is ready.
    """
    parsed = parse_target(name)

    def open_split(split: Split) -> Images:
        images = parsed.dataset.load(split, data_dir=data_dir or default_data_dir(), download=download, device=device)
        return images if stop is None else _Stoppable(images, stop)

    if checkpoint is not None:
        return _from_checkpoint(parsed, checkpoint, open_split, torch.device(device))
    if parsed.brings_weights:
        return _pretrained(parsed, open_split, torch.device(device))
    path = _cache_path(parsed, seed)
    if (shipped := _shipped(parsed, path, torch.device(device))) is not None:
        return shipped
    if (cached := _from_cache(parsed, path, torch.device(device))) is not None:
        return cached
    with alone(path, stop):  # on a GPU, two processes that train it would end in two targets
        cached = _from_cache(parsed, path, torch.device(device))  # by whoever was waited for
        return cached or _train_and_cache(parsed, seed, path, open_split, torch.device(device), listener)


def cached_targets() -> Iterator[Card]:
    """The cards of all targets that were trained here; a damaged card is passed over."""
    return cards(zoo_dir())


def zoo_dir() -> Path:
    """Where targets are cached: below ``MSBENCH_HOME``, or the user's cache folder."""
    home = os.environ.get("MSBENCH_HOME")
    return (Path(home) if home else user_cache_path("msbench")) / "targets"


# ------------------------------------------------------------------------------------------------- internals


class _Stoppable:
    """Images of which no further batch comes once a stop is asked for: an epoch may take hours."""

    def __init__(self, images: Images, stop: threading.Event) -> None:
        self._images = images
        self._stop = stop

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Images.take`."""
        return self._images.take(indices)

    def batches(self, size: int, *, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Images.batches`. Raises `Interrupted`."""
        for batch in self._images.batches(size, order=order):
            if self._stop.is_set():
                raise Interrupted("stopped before the target was ready; nothing of it is kept")
            yield batch


def _cache_path(parsed: TargetName, seed: int = 0) -> Path:
    """Named after everything that determines the weights, so that a new recipe never finds old ones."""
    recipe = asdict(recipe_for(parsed.dataset.label()))
    identity = [parsed.dataset.identity(), parsed.architecture, recipe, seed]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in parsed.architecture)
    return zoo_dir() / parsed.dataset.label() / f"{stem}-{digest}.safetensors"


def _shipped(parsed: TargetName, path: Path, device: torch.device) -> Loaded | None:
    """The target of that place in the cache, if it comes with msbench. Raises `BadCheckpoint` if it is damaged."""
    shipped = FOLDER / path.relative_to(zoo_dir())
    if not shipped.is_file():
        return None
    loaded = _from_cache(parsed, shipped, device)
    if loaded is None:
        raise BadCheckpoint(f"{shipped} is not what came with msbench: install msbench again")
    return loaded


def _from_cache(parsed: TargetName, path: Path, device: torch.device) -> Loaded | None:
    card = read_card(path.with_suffix(".json"))
    if card is None or not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.digest:
        return None  # a damaged file is trained anew rather than trusted
    target = _assemble(parsed, load_tensors(content), path, device)
    return Loaded(target=target, dataset=parsed.dataset, card=card, path=path)


def _train_and_cache(
    parsed: TargetName, seed: int, path: Path, open_split: Any, device: torch.device, listener: Watcher | None
) -> Loaded:
    images, held_out = open_split("train"), open_split("test")
    recipe = recipe_for(parsed.dataset.label())
    if listener:
        listener.phase(f"training target {parsed.dataset_spec}/{parsed.architecture} (once; then cached)")
    started = time.perf_counter()
    mean, std = channel_statistics(images)
    target = _build(parsed, mean, std, seed).to(device)
    train(
        target,
        images,
        recipe,
        seed=seed,
        device=device,
        on_epoch=listener.training if listener else lambda epoch, epochs, loss: None,
    )
    content = save_tensors({key: value.cpu().contiguous() for key, value in target.state_dict().items()})
    card = Card(
        dataset=parsed.dataset_spec,
        architecture=parsed.architecture,
        accuracy=accuracy(target, held_out),
        seed=seed,
        recipe=asdict(recipe),
        digest=hashlib.sha256(content).hexdigest(),
        trained_seconds=round(time.perf_counter() - started, 3),
    )
    write_atomically(path, content)
    text = json.dumps(asdict(card), indent=2, sort_keys=True) + "\n"
    write_atomically(path.with_suffix(".json"), text)
    return Loaded(target=_freeze(target), dataset=parsed.dataset, card=card, path=path)


def _from_checkpoint(parsed: TargetName, path: Path, open_split: Any, device: torch.device) -> Loaded:
    content = _read_checkpoint(path)
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise BadCheckpoint(f"{path} is not a safetensors file: {error}") from None
    if "mean" not in tensors:  # weights of a bare network: normalization comes from the training images
        mean, std = channel_statistics(open_split("train"))
        tensors = {f"network.{key}": value for key, value in tensors.items()}
        channels = (1, parsed.dataset.image_shape[0], 1, 1)
        tensors |= {"mean": torch.tensor(mean).view(channels), "std": torch.tensor(std).view(channels)}
    target = _assemble(parsed, tensors, path, device)
    digest = hashlib.sha256(content).hexdigest()
    return Loaded(target=target, dataset=parsed.dataset, card=_card_of(parsed, target, open_split, digest), path=path)


def _pretrained(parsed: TargetName, open_split: Any, device: torch.device) -> Loaded:
    network = build_network(
        parsed.architecture,
        num_classes=parsed.dataset.num_classes,
        image_shape=parsed.dataset.image_shape,
        seed=0,  # of what the weights do not hold
        pretrained=True,
    )
    config: Any = network.pretrained_cfg
    if config["num_classes"] != parsed.dataset.num_classes:
        raise UsageError(
            f"the weights {parsed.architecture} know {config['num_classes']} classes, {parsed.dataset_spec} has "
            f"{parsed.dataset.num_classes}: name the architecture alone, which is trained on first use"
        )
    channels = parsed.dataset.image_shape[0]
    mean, std = (_per_channel(config[key], channels) for key in ("mean", "std"))
    target = Target(
        network,
        mean=mean,
        std=std,
        num_classes=parsed.dataset.num_classes,
        image_shape=parsed.dataset.image_shape,
    ).to(device)
    weights = save_tensors({key: value.cpu().contiguous() for key, value in target.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    card = _card_of(parsed, _freeze(target), open_split, digest)
    return Loaded(target=target, dataset=parsed.dataset, card=card, path=None)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Normalization for gray images is the mean of the three channels', as timm sums their first weights."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _card_of(parsed: TargetName, target: Target, open_split: Any, digest: str) -> Card:
    return Card(
        dataset=parsed.dataset_spec,
        architecture=parsed.architecture,
        accuracy=accuracy(target, open_split("test")),
        seed=0,
        recipe={},
        digest=digest,
        trained_seconds=0.0,
    )


def _read_checkpoint(path: Path) -> bytes:
    if not path.is_file():
        raise BadCheckpoint(f"no checkpoint {str(path)!r}: give a .safetensors file")
    content = path.read_bytes()
    # The first eight bytes of safetensors are a length, which may look like a pickle's; a brace follows it.
    if content[8:9] != b"{" and (content[:2] == b"PK" or content[:1] == b"\x80"):
        raise BadCheckpoint(
            f"{path} is a pickle, which can run code when it is loaded: "
            "convert it with safetensors.torch.save_file(state_dict, 'weights.safetensors')"
        )
    return content


def _build(parsed: TargetName, mean: tuple[float, ...], std: tuple[float, ...], seed: int = 0) -> Target:
    shape = parsed.dataset.image_shape
    network = build_network(
        parsed.architecture,
        num_classes=parsed.dataset.num_classes,
        image_shape=shape,
        seed=seed,
    )
    return Target(network, mean=mean, std=std, num_classes=parsed.dataset.num_classes, image_shape=shape)


def _assemble(parsed: TargetName, tensors: dict[str, Tensor], path: Path, device: torch.device) -> Target:
    unit = (0.0,) * parsed.dataset.image_shape[0]
    target = _build(parsed, unit, unit)
    try:
        target.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1:2] or [str(error)]
        raise BadCheckpoint(
            f"{path} does not fit {parsed.dataset_spec}/{parsed.architecture}: {first[0].strip()}"
        ) from None
    return _freeze(target.to(device))


def _freeze(target: Target) -> Target:
    target.requires_grad_(False)
    return target.eval()
