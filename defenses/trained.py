"""Networks that defenses train, kept beside the targets: a run that is continued finds them, and so do other runs.

What is kept is found again only by everything that determines it: the defense with its parameters and its seed,
the network's initial weights, the target's weights, the recipe, the data. `trained` therefore returns the same
network whether it was kept or not, and leaves every random state the same. Weights are kept as safetensors, which
say in their header what they are of; a damaged file is trained anew rather than trusted.

Of data only a sample is compared: a few hundred images spread evenly over a set, and how many there are.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..files import alone, write_atomically
from ..targets.datasets.base import Images
from ..targets.zoo import zoo_dir
from .base import Defense, DefenseContext

_SAMPLE = 256
"""Images of a data set that are compared."""


def trained(
    network: nn.Module,
    fit: Callable[[nn.Module], object],
    *,
    defense: Defense,
    context: DefenseContext,
    data: Iterable[Images] = (),
    part: str = "",
) -> nn.Module:
    """The network, trained in place by ``fit``, or by an earlier call that all was the same in; frozen, for evaluation.

    Whatever ``fit`` draws at random comes from generators that it makes itself, or from the global random state,
    which is seeded with the defense's seed for it and is as before afterwards.

    Args:
        network: initialized from a seed; several at once are a `torch.nn.ModuleList`.
        fit: trains the network that it is given, in place, and leaves nothing else behind.
        data: every set of images that ``fit`` uses.
        part: tells networks apart of which a defense trains several, one call each.

    Raises `StoreError` where the folder cannot be written.
    """
    network = network.to(context.device)
    identity = _identity(network, defense, context, data, part)
    path = trained_dir() / _stem(defense.label()) / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    with alone(path):  # on a GPU, two processes that train it would end in two networks
        weights = _kept(path, identity)
        if weights is None:
            devices = [context.device] if context.device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.enable_grad():
                torch.manual_seed(context.seed)
                fit(network)
            weights = _weights(network)
            content = save_tensors(weights, metadata={"identity": identity, "digest": _digest(weights)})
            write_atomically(path, content)
        else:
            network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


def trained_dir() -> Path:
    """Where trained defenses are kept: beside the targets."""
    return zoo_dir().parent / "defenses"


def _identity(network: nn.Module, defense: Defense, context: DefenseContext, data: Iterable[Images], part: str) -> str:
    return json.dumps(
        {
            "defense": defense.describe(),
            "part": part,
            "seed": context.seed,
            "initial weights": _digest(_weights(network)),
            "target": _digest(_weights(context.target())),
            "image shape": context.image_shape,
            "recipe": asdict(context.recipe),
            "data": [_fingerprint(images) for images in data],
            "computed by": _computed_by(context.device),
        },
        sort_keys=True,
    )


def _computed_by(device: torch.device) -> list[str]:
    """Kernels differ in rounding, which training amplifies; on a CPU so do numbers of threads, and instructions."""
    where = [device.type, torch.__version__]
    if device.type == "cpu":
        where += [torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]
    return where


def _stem(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


def _digest(weights: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(save_tensors(dict(weights))).hexdigest()


def _fingerprint(images: Images) -> str:
    count = len(images)
    pixels, labels = images.take(torch.linspace(0, count - 1, min(count, _SAMPLE), dtype=torch.float64).long())
    return f"{count} {_digest({'pixels': pixels.cpu().contiguous(), 'labels': labels.cpu().contiguous()})}"


def _kept(path: Path, identity: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError):
        return None
    sound = metadata.get("identity") == identity and metadata.get("digest") == _digest(weights)
    return weights if sound else None
