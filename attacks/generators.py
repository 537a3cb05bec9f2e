"""Generators of data-free attacks: latent vectors in, images in [0, 1] out."""

import torch
from torch import Tensor, nn


class ConvGenerator(nn.Module):
    """The three-convolution generator that DFME, Dual Student and DisGUIDE share.

    Linear layer to ``width`` channels at a quarter of the size, batch normalization, then twice: nearest
    upsampling, 3x3 convolution, batch normalization, LeakyReLU(0.2); a last convolution to the image's channels
    and a batch normalization without parameters, so that each channel has about zero mean and unit variance
    before tanh. The papers use ``width`` = 128. They feed tanh's [-1, 1] to the victim; here it is mapped to
    pixels in [0, 1].

    Args:
        image_shape: (C, H, W); H and W multiples of 4.
        latent: length of the latent vectors.
        width: channels of the first half; the second has half as many.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, latent: int, width: int) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        self.latent = latent
        self.start = (width, -(-height // 4), -(-width_px // 4))
        self.size = (height, width_px)
        self.project = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        self.body = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.BatchNorm2d(channels, affine=False),
        )

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Latent vectors (N, latent), standard normal, on the generator's device."""
        return torch.randn(count, self.latent, generator=generator, device=generator.device)

    def before_tanh(self, latents: Tensor) -> Tensor:
        """Unbounded images (N, C, H, W)."""
        grid = self.project(latents).view(-1, *self.start)
        unbounded: Tensor = self.body(grid)[:, :, : self.size[0], : self.size[1]]
        return unbounded

    def forward(self, latents: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]."""
        return to_pixels(self.before_tanh(latents))


def to_pixels(unbounded: Tensor) -> Tensor:
    """Squash unbounded images into [0, 1] through tanh."""
    return (unbounded.tanh() + 1) / 2


def build_generator(
    image_shape: tuple[int, int, int], *, latent: int, width: int, seed: int, device: torch.device
) -> ConvGenerator:
    """A `ConvGenerator` whose initialization depends on the seed alone.

    Its normalization statistics are taken from one large batch of its own images before use. They start at zero
    mean and unit variance otherwise, and a generator that is sampled in evaluation mode would spend the first
    thousands of queries on gray images: one iteration of Dual Student moves them once in five batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = ConvGenerator(image_shape, latent=latent, width=width).to(device)
    _calibrate(generator, torch.Generator(device).manual_seed(seed))
    return generator


@torch.no_grad()
def _calibrate(generator: ConvGenerator, latents: torch.Generator) -> None:
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    generator.train()(generator.sample(1024, latents))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
