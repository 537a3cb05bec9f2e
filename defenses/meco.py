"""MeCo: queries are perturbed by small random networks, and the served network is trained to bear it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..targets.datasets.base import Images
from ..targets.training import train
from .base import Defense, DefenseContext, Traits
from .trained import trained

_HIDDEN = 2
"""Channels inside a random network, as in the official code."""


@dataclass(kw_only=True)
class MeCo(Defense):
    """Perturb every query by a random function of itself, and serve a network that was trained on such queries.

    Each image x is answered as x + scale·P(x), in units of contrast: of the standard deviation that the pixels of one
    of the defender's images have, channel by channel, on average. P is two blocks of small convolutions, each
    normalized over the image to mean 0 and variance 1 in every channel, with weights drawn anew for every image of
    every query. A batch is therefore perturbed as its images would be one by one, and the same image twice by two
    functions. Of an image of one gray level, the normalizations leave rounding errors, which they enlarge.

    Training is distributionally robust, in the same units: each image x is first moved to z, uphill in the network's
    cross-entropy minus gamma·‖z - x‖², by Stein variational gradient descent over the batch, with a Gaussian kernel.
    What is brought down is the cross-entropy at x and at the perturbed z, plus ``agreement`` times the mean L1 distance
    between the logits at z and at the perturbed z. The amplitude of the perturbation is drawn for each batch
    between a half and the whole of ``scale``.

    Wang et al. (NeurIPS 2023); the defaults are those of their code for CIFAR-10 (a scale of 0.2 for CIFAR-100),
    which evaluates attacks whose gradient queries reach the unperturbed network. Here every query is perturbed.
    There images are standardized before they are moved and perturbed, on CIFAR-10 by 0.2023, 0.1994 and 0.2010, which
    is its contrast; on MNIST by 0.3081, where the contrast is 0.3013. With their step, the default, z differs from x
    by less than one gray level, and the robustness that is learned is to the perturbation. Deviations: weights of P
    are Gaussian, where theirs are uniform in training and in part Gaussian afterwards (their scale drops out in the
    normalization, and biases with it); the amplitude in training is tied to ``scale``, where theirs is from 0.15 to
    0.3 throughout; each image moves by the gradient of its own loss, not of the batch's mean, and away from the
    others, where a sign in their code pulls them together; and the network is trained as the target was, for as many
    epochs, rather than by 200 epochs of SGD.
    """

    scale: float = param(
        0.27, "root mean square of the perturbation, in standard deviations of an image's pixels", ge=0
    )
    steps: int = param(1, "steps of every training image towards a higher loss", ge=0)
    step_size: float = param(1e-4, "length of those steps, as a factor on their direction", ge=0)
    gamma: float = param(0.2, "price of the squared distance that an image has moved", ge=0)
    agreement: float = param(0.001, "weight of the distance between logits before and after the perturbation", ge=0)

    version: ClassVar[str] = "2"
    paper: ClassVar[Paper | None] = Paper(
        key="wang2023defending",
        title="Defending against Data-Free Model Extraction by Distributionally Robust Defensive Training",
        authors="Wang, Zhenyi and Shen, Li and Liu, Tongliang and Duan, Tiehang and Zhu, Yanjun and Zhan, Donglin"
        " and Doermann, David and Gao, Mingchen",
        year=2023,
        venue="Advances in Neural Information Processing Systems",
    )
    traits: ClassVar[Traits] = Traits(
        argmax_preserving=False,
        stochastic=True,
        needs=("surrogate", "data"),
        stage="training",
        knob="scale",
        sweep=(0.05, 0.1, 0.2, 0.27, 0.4, 0.6),
        preserves="Accuracy on images like those it was trained on, on average over the perturbations.",
        weakness="Averaging repeated answers removes the randomness, and leaves a network that is smooth on purpose.",
    )

    def prepare(self, context: DefenseContext) -> None:
        """Train the network that is served, and seed the perturbations of queries."""
        data = context.data()
        contrast = mean_contrast(data).to(context.device)

        def fit(network: nn.Module) -> None:
            generator = torch.Generator(context.device).manual_seed(context.stream("meco training"))
            train(
                network,
                data,
                context.recipe,
                seed=context.stream("meco data"),
                device=context.device,
                objective=lambda images, labels: self.loss(network, images, labels, contrast, generator),
            )

        fresh = context.new_surrogate(context.stream("meco"))
        network = trained(fresh, fit, defense=self, context=context, data=[data])
        self.network = Perturbed(network, self.scale, contrast, context.generator())

    def loss(
        self, network: nn.Module, images: Tensor, labels: Tensor, contrast: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The objective (a scalar) for images (N, C, H, W) in [0, 1], labels (N,), and the contrast (C, 1, 1)."""

        def seen(scaled: Tensor) -> Tensor:
            logits: Tensor = network(scaled * contrast)
            return logits

        moved = self.move(seen, images / contrast, labels)
        amplitude = self.scale * (1 + torch.rand((), generator=generator, device=generator.device)) / 2
        perturbed = seen(moved + amplitude * perturbation(moved, generator))
        robust = F.cross_entropy(perturbed, labels) + self.agreement * F.l1_loss(perturbed, seen(moved))
        return F.cross_entropy(network(images), labels) + robust

    def move(self, network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, H, W), in units of contrast, after some steps towards a higher loss that keep them apart."""
        moved = images
        for _ in range(self.steps):
            moved = moved.detach().requires_grad_()
            losses = F.cross_entropy(network(moved), labels, reduction="sum")
            [uphill] = torch.autograd.grad(losses, moved)
            uphill = uphill - 2 * self.gamma * (moved.detach() - images)
            moved = moved.detach() + self.step_size * stein_direction(moved.detach(), uphill)
        return moved.detach()

    def deploy(self, target: nn.Module) -> nn.Module:
        """The robust network behind the perturbation."""
        return self.network

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        """``probs`` (N, K) as they are: the network that gave them is the defense."""
        return probs


class Perturbed(nn.Module):
    """A network that is shown every image perturbed, by a random function that is drawn for it.

    Args:
        network: maps images (N, C, H, W) to logits (N, K).
        scale: see `MeCo.scale`.
        contrast: the unit of the scale (C, 1, 1), see `mean_contrast`; part of the module's state.
        generator: where the functions come from; its state is part of the module's.
    """

    def __init__(self, network: nn.Module, scale: float, contrast: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.register_buffer("contrast", contrast)
        self.contrast: Tensor
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) for images (N, C, H, W) in [0, 1]; advances the generator."""
        added = self.scale * perturbation(images / self.contrast, self.generator)
        logits: Tensor = self.network(images + added * self.contrast)
        return logits

    def get_extra_state(self) -> Tensor:
        """The generator's state."""
        return self.generator.get_state()

    def set_extra_state(self, state: Any) -> None:
        """Continue the generator where `get_extra_state` was taken."""
        self.generator.set_state(state.cpu())


def mean_contrast(images: Images, batch: int = 1024) -> Tensor:
    """The standard deviation of an image's pixels in each channel, (C, 1, 1), on average over images in [0, 1]."""
    total = sum(pixels.double().flatten(2).std(dim=2, correction=0).sum(dim=0) for pixels, _ in images.batches(batch))
    return (torch.as_tensor(total) / len(images)).clamp_min(1e-6).float().view(-1, 1, 1)


def perturbation(images: Tensor, generator: torch.Generator) -> Tensor:
    """P(x) for images (N, C, H, W), each by a random network of its own; mean 0 and variance 1 in every channel."""
    count, channels = images.shape[:2]
    features = images
    for _ in range(2):
        features = _convolve(features, _draw((count, _HIDDEN, channels, 1, 1), generator))
        features = F.instance_norm(features).relu()
        features = _convolve(features, _draw((count, _HIDDEN, _HIDDEN, 3, 3), generator))
        features = F.instance_norm(features).relu()
        features = _convolve(features, _draw((count, channels, _HIDDEN, 1, 1), generator))
        features = F.instance_norm(features)
    return features


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device) / math.sqrt(math.prod(shape[2:]))


def _convolve(images: Tensor, weights: Tensor) -> Tensor:
    """Images (N, C, H, W), each convolved with its own weights (N, D, C, k, k), dilated by two and padded to size."""
    count, _, height, width = images.shape
    dilation = 2
    padding = dilation * (weights.shape[-1] // 2)
    together = images.reshape(1, -1, height, width)
    out = F.conv2d(together, weights.flatten(0, 1), padding=padding, dilation=dilation, groups=count)
    return out.view(count, -1, height, width)


def stein_direction(particles: Tensor, uphill: Tensor) -> Tensor:
    """The direction (N, ...) of Stein variational gradient descent for particles and their gradients of log-density.

    The Gaussian kernel exp(-d² / h) has h = 0.05·median² / log(N + 1), the median being over all distances. For
    a batch of images this is so narrow that each moves by its own gradient, divided by N. Particles that
    all coincide share their gradients and do not repel each other.
    """
    count = len(particles)
    points, gradients = particles.flatten(1).double(), uphill.flatten(1).double()
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    bandwidth = (0.05 * distances.median().square() / math.log(count + 1)).clamp_min(1e-12)
    kernel = (-distances.square() / bandwidth).exp()
    repulsion = 2 / bandwidth * (kernel.sum(dim=1, keepdim=True) * points - kernel @ points)
    return ((kernel @ gradients + repulsion) / count).to(particles.dtype).view_as(particles)
