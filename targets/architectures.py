"""Network architectures, all built by ``timm.create_model``; the field's small ones are registered here.

The "8x" of ResNet-18-8x and ResNet-34-8x (the model-stealing papers' names) is the total downsampling factor:
standard widths of 64 to 512, a 3x3 stem, no max-pool. They are not eight times wider.

An architecture is named as a spec, ``NAME`` or ``NAME:key=value,key=value``; the keys are the keyword arguments
of timm's constructor.
"""

import ast
import inspect
from itertools import pairwise
from typing import Any, cast

import timm
import torch
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from ..components import forgotten, format_spec, parse_spec
from ..errors import BadParameter, UnknownName

OURS = ("lenet5", "resnet18_8x", "resnet34_8x")
"""What this module adds to timm's own architectures."""


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998) as the field uses it today, with ReLU and max-pooling.

    Two convolutions, each followed by 2x2 max-pooling, then fully connected layers of 120 and 84 units. The
    convolutions have 16 and 32 channels where the original has 6 and 16, and kernels of 5x5, but 3x3 on images
    below 16 pixels, most of which a larger kernel would cover. Padding keeps sizes even.

    Args:
        num_classes: K.
        in_chans: channels of the images.
        img_size: height and width, a multiple of 4.
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the hidden layers, joined by dashes.
        norm: ``batch`` puts batch normalization after each convolution.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int = 28,
        width: int = 16,
        hidden: str = "120-84",
        norm: str = "none",
    ) -> None:
        super().__init__()
        if norm not in ("none", "batch"):
            raise BadParameter(f"lenet5: norm={norm!r} is not usable: choose none or batch")
        if not isinstance(width, int) or width < 1:
            raise BadParameter(f"lenet5: width={width!r} is not usable: it must be a whole number, at least 1")
        if img_size % 4:
            raise BadParameter(f"lenet5: img_size={img_size} is not usable: it must be a multiple of 4")
        kernel = 5 if img_size >= 16 else 3
        self.features = nn.Sequential(
            *_stage(in_chans, width, kernel, norm),
            *_stage(width, 2 * width, kernel, norm),
            nn.Flatten(),
        )
        sizes = [2 * width * (img_size // 4) ** 2, *_units(str(hidden)), num_classes]
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
        self.head = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) for images (N, C, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _stage(channels_in: int, channels_out: int, kernel: int, norm: str) -> list[nn.Module]:
    normalization: list[nn.Module] = [nn.BatchNorm2d(channels_out)] if norm == "batch" else []
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=not normalization)
    # Pooling first, which gives the same and leaves a quarter to rectify.
    return [convolution, *normalization, nn.MaxPool2d(2), nn.ReLU()]


def _units(hidden: str) -> list[int]:
    units = [int(text) if text.isdecimal() else 0 for text in hidden.split("-")]
    if min(units) < 1:
        raise BadParameter(f"lenet5: hidden={hidden!r} is not usable: write 120-84, say")
    return units


@register_model
def lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """LeNet-5; no pretrained weights exist."""
    return LeNet5(**_known(kwargs, LeNet5))


@register_model
def resnet18_8x(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 for small images: 11,173,962 parameters with 3 channels and 10 classes."""
    return _resnet_8x((2, 2, 2, 2), kwargs)


@register_model
def resnet34_8x(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34 for small images."""
    return _resnet_8x((3, 4, 6, 3), kwargs)


def _resnet_8x(layers: tuple[int, ...], kwargs: dict[str, Any]) -> ResNet:
    arguments = _known(kwargs, ResNet)
    network: Any = ResNet(BasicBlock, layers, **arguments)  # type: ignore[arg-type]  # timm's annotation is off
    network.conv1 = nn.Conv2d(arguments.get("in_chans", 3), 64, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return cast(ResNet, network)


def _known(kwargs: dict[str, Any], cls: type) -> dict[str, Any]:
    """Drop what timm passes to every constructor but this one does not take."""
    accepted = inspect.signature(cls).parameters
    passed_by_timm = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "img_size")
    return {key: value for key, value in kwargs.items() if key in accepted or key not in passed_by_timm}


def our_architectures() -> list[str]:
    """The architectures that msbench adds to timm's."""
    return list(OURS)


def check_architecture(spec: str) -> None:
    """Check that timm (or the hub, for ``hf-hub:`` names) can build the architecture.

    Raises `UnknownName` for a name that it does not know and `BadParameter` for arguments that are not ``key=value``.
    """
    name, _ = parse_spec(spec)
    if name.startswith("hf-hub:") or timm.is_model(name):
        return
    if timm.is_model(name.partition(":")[0]):
        raise forgotten(name)
    raise UnknownName(
        "architecture", name, timm.list_models(), hint=f"ours: {', '.join(OURS)}; any timm model name works"
    )


def build_network(
    spec: str, *, num_classes: int, image_shape: tuple[int, int, int], seed: int, pretrained: bool = False
) -> nn.Module:
    """Build an architecture with freshly initialized (or, if asked, pretrained) weights.

    The initialization depends on ``seed`` alone and leaves the global random state as it was. Weights lie in
    ``channels_last``, the layout that convolutions and pooling are fastest in, on the CPU as well.

    Raises `UnknownName` for a name that timm does not know and `BadParameter` for arguments it does not take.
    """
    check_architecture(spec)
    name, text = parse_spec(spec)
    channels, height, _ = image_shape
    kwargs = {key: _literal(value) for key, value in text.items()}
    for key in kwargs:
        if key in ("num_classes", "in_chans", "img_size", "pretrained"):
            raise BadParameter(f"architecture {format_spec(name, text)}: {key} follows from the target, leave it out")

    def create(**more: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=channels, **more)
        return network.to(memory_format=torch.channels_last)

    try:
        try:
            return create(img_size=height, **kwargs)
        except TypeError:  # most convolutional networks take no image size
            return create(**kwargs)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # timm refuses arguments in many ways
        raise BadParameter(f"architecture {format_spec(name, text)}: {str(error).partition(chr(10))[0]}") from None


class Centered(nn.Module):
    """A network that gets pixels in [0, 1] as [-1, 1].

    Clones and surrogates need no more knowledge of the data than its range for that, and a network without batch
    normalization learns several times slower from images whose mean is far from zero.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) for images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.network(2 * images - 1)
        return logits


def build_clone(spec: str, *, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """A freshly initialized network for whoever does not know the target's normalization; raises as `build_network`."""
    return Centered(build_network(spec, num_classes=num_classes, image_shape=image_shape, seed=seed))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
