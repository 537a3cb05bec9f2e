"""Generators of data-free attacks: latent vectors in, images in [0, 1] out."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import AttackContext


class UpsampledConv2d(nn.Conv2d):
    """Nearest upsampling to twice the size, then a padded 3x3 convolution, in four ninths of its multiplications.

    An upsampled image holds each pixel four times, so that a 3x3 window of it covers no more than 2x2 pixels, and
    the weights on the same pixel can be added up beforehand. All four ways in which a window can lie are one
    transposed convolution of stride 2, whose 4x4 kernel in one dimension is (w2, w1 + w2, w0 + w1, w0).
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        folded = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("folded", torch.kron(folded, folded).T.contiguous(), persistent=False)
        self.folded: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels_out, 2H, 2W) for (N, channels_in, H, W)."""
        if min(images.shape[-2:]) < 4:  # most of the larger kernel would lie outside
            return super().forward(F.interpolate(images, scale_factor=2))
        kernel = (self.weight.flatten(2) @ self.folded).view(self.out_channels, self.in_channels, 4, 4)
        return F.conv_transpose2d(images, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


class Generator(nn.Module, ABC):
    """Latent vectors in, images out. What all kinds share: a linear layer to a coarse grid, and a body after it.

    The body ends in a batch normalization, without parameters unless it is ``affine``, so that each channel has about
    zero mean and unit variance before tanh, whatever comes before; that makes kinds exchangeable at one setting of an
    attack. The papers feed tanh's [-1, 1] to the victim; here it is mapped to pixels in [0, 1].

    Args:
        image_shape: (C, H, W); sizes that the grid does not double to are cropped.
        latent: length of the latent vectors.
        width: channels at half the image's size.
        affine: whether the last normalization learns a scale and a shift, which start at one and zero (MAZE).
    """

    body: nn.Sequential

    def __init__(self, image_shape: tuple[int, int, int], *, latent: int, width: int, affine: bool = False) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        doublings, start_channels = self.grid(min(height, width_px), width)
        self.latent = latent
        self.start = (start_channels, -(-height // 2**doublings), -(-width_px // 2**doublings))
        self.size = (height, width_px)
        self.project = nn.Linear(latent, math.prod(self.start))
        self.body = nn.Sequential(
            *self.layers(doublings, width, channels),
            nn.BatchNorm2d(channels, affine=affine),
        )

    @abstractmethod
    def grid(self, side: int, width: int) -> tuple[int, int]:
        """How often the grid doubles to reach an image of that side, and its channels to begin with."""

    @abstractmethod
    def layers(self, doublings: int, width: int, channels: int) -> list[nn.Module]:
        """What leads from the grid to the image's channels, at least at the image's size."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Latent vectors (N, latent), standard normal, on the generator's device."""
        return torch.randn(count, self.latent, generator=generator, device=generator.device)

    def before_tanh(self, latents: Tensor) -> Tensor:
        """Unbounded images (N, C, H, W)."""
        grid = self.project(latents).view(-1, *self.start).contiguous(memory_format=torch.channels_last)
        unbounded: Tensor = self.body(grid)[:, :, : self.size[0], : self.size[1]]
        return unbounded

    def forward(self, latents: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        return to_pixels(self.before_tanh(latents))


class ConvGenerator(Generator):
    """The three-convolution generator that DFME, Dual Student, DisGUIDE and MAZE share.

    ``width`` channels at a quarter of the size, batch normalization, then twice: nearest upsampling, 3x3 convolution,
    batch normalization, LeakyReLU(0.2), the second time with half the channels; a last convolution to the image's
    channels. The papers use ``width`` = 128. The grid grows with the image: at 224x224 its linear layer holds most of
    the parameters.
    """

    def grid(self, side: int, width: int) -> tuple[int, int]:
        """See `Generator.grid`."""
        return 2, width

    def layers(self, doublings: int, width: int, channels: int) -> list[nn.Module]:
        """See `Generator.layers`."""
        return [
            nn.BatchNorm2d(width),
            UpsampledConv2d(width, width),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            UpsampledConv2d(width, width // 2),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width // 2, channels, 3, padding=1),
        ]


class DCGANGenerator(Generator):
    """The generator of DCGAN (Radford, Metz and Chintala, ICLR 2016, arXiv 1511.06434), up to the last normalization.

    From a grid of 4 to 7 pixels a side, each 4x4 transposed convolution of stride 2 doubles the size and halves the
    channels, of which there are ``width`` at half the size and never more than eight times as many; batch
    normalization and ReLU between them; weights start normal with a standard deviation of 0.02.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, latent: int, width: int, affine: bool = False) -> None:
        super().__init__(image_shape, latent=latent, width=width, affine=affine)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)

    def grid(self, side: int, width: int) -> tuple[int, int]:
        """See `Generator.grid`."""
        doublings = _doublings(side)
        return doublings, _halved(width, doublings)

    def layers(self, doublings: int, width: int, channels: int) -> list[nn.Module]:
        """See `Generator.layers`."""
        layers: list[nn.Module] = []
        for left in range(doublings, 0, -1):
            before = _halved(width, left)
            after = _halved(width, left - 1) if left > 1 else channels
            layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        return layers


class ResidualGenerator(Generator):
    """A small residual generator in the manner of SNGAN's (Miyato et al., ICLR 2018, arXiv 1802.05957).

    From a grid of 4 to 7 pixels a side, each residual block doubles the size; ``width`` channels, half as many in the
    last block; normalization, LeakyReLU(0.2) and a 3x3 convolution lead to the image.
    """

    def grid(self, side: int, width: int) -> tuple[int, int]:
        """See `Generator.grid`."""
        return _doublings(side), width

    def layers(self, doublings: int, width: int, channels: int) -> list[nn.Module]:
        """See `Generator.layers`."""
        return [
            *[UpsampledBlock(width, width) for _ in range(doublings - 1)],
            UpsampledBlock(width, width // 2),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width // 2, channels, 3, padding=1),
        ]


class UpsampledBlock(nn.Module):
    """Twice the size, by two 3x3 convolutions beside a shortcut: a 1x1 convolution, nearest upsampling."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.LeakyReLU(0.2, inplace=True),
            UpsampledConv2d(channels_in, channels_out),
            nn.BatchNorm2d(channels_out),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels_out, 2H, 2W) for (N, channels_in, H, W)."""
        summed: Tensor = F.interpolate(self.shortcut(images), scale_factor=2) + self.residual(images)
        return summed


def _doublings(side: int) -> int:
    """How often a grid of 4 to 7 pixels doubles to an image of that side, at least once."""
    return max(1, (side // 4).bit_length() - 1)


def _halved(width: int, left: int) -> int:
    """DCGAN's channels with so many doublings left."""
    return width * min(8, 1 << max(0, left - 1))


GeneratorName = Literal["conv", "dcgan", "residual"]
GENERATORS: dict[GeneratorName, type[Generator]] = {
    "conv": ConvGenerator,
    "dcgan": DCGANGenerator,
    "residual": ResidualGenerator,
}
"""The kinds of generators, as the parameter ``generator_kind`` of data-free attacks names them."""


def to_pixels(unbounded: Tensor) -> Tensor:
    """Squash unbounded images into [0, 1] through tanh."""
    return (unbounded.tanh() + 1) / 2


def build_generator(
    context: AttackContext,
    image_shape: tuple[int, int, int],
    *,
    latent: int,
    width: int,
    kind: GeneratorName = "conv",
    affine: bool = False,
) -> Generator:
    """A generator on the context's device, whose initialization depends on the context's seed alone.

    Its normalization statistics are taken from one large batch of its own images before use. They start at zero
    mean and unit variance otherwise, and a generator that is sampled in evaluation mode would spend the first
    thousands of queries on gray images: one iteration of Dual Student moves them once in five batches. On the CPU the
    batch is drawn from the same random numbers as the weights, which makes the first layer's variances three per cent
    too large at most; they stay, since another batch would change every clone.
    """
    seed = context.stream("generator")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = GENERATORS[kind](image_shape, latent=latent, width=width, affine=affine)
    generator = generator.to(context.device).to(memory_format=torch.channels_last)
    _calibrate(generator, torch.Generator(context.device).manual_seed(seed))
    context.prepare(generator.body)
    return generator


@torch.no_grad()
def _calibrate(generator: Generator, latents: torch.Generator) -> None:
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    height, width = generator.size
    generator.train()(generator.sample(min(1024, max(32, 2**20 // (height * width))), latents))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
