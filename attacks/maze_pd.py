"""MAZE-PD: MAZE with a few real images, which a critic holds the generator close to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..components import param
from ..errors import UsageError
from ..targets.blackbox import Victim
from .base import AttackContext, AttackTraits, StepReport
from .learning import build_optimizer, decay, descend, progress, set_lr
from .maze import MAZE
from .replay import quantize


@dataclass(kw_only=True)
class MAZEPD(MAZE):
    """MAZE with partial data: a Wasserstein critic with gradient penalty tells a few real images from generated ones.

    The generator climbs the critic's score beside the divergence, and the critic learns a batch for each of the
    clone's (Kariyappa, Prakash and Qureshi, CVPR 2021, arXiv 2005.03161). The first step asks the victim about the
    real images, once, and puts them into replay; every other is one of MAZE.

    Deviations: those of MAZE. The real images are of the attacker's pool, not of the victim's training data. They are
    drawn with replacement for the critic's batches. The critic has fewer convolutions for images below 16 pixels, and
    its third one has a stride of two on MNIST and Fashion-MNIST as well, where theirs has one. No released command
    turns the critic on, and the paper's ``gan_weight`` could not be verified: 1 is ours.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(
        threat_model="pool", access="probabilities", queries_per_step="(m + 5) B, after the real images"
    )

    seeds: int = param(100, "real images, each asked once", ge=1)
    gan_weight: float = param(1.0, "weight of the critic's score in the generator's loss", ge=0)
    penalty: float = param(10.0, "weight of the gradient penalty in the critic's loss", ge=0)
    lr_critic: float = param(1e-4, "the critic's learning rate at the start (the generator's kind of optimizer)", gt=0)

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Choose the real images and build the critic. Raises `UsageError` without a pool."""
        super().setup(victim, context)
        if context.pool is None:
            raise UsageError("maze_pd needs a few real images and was given no pool: name one with --pool")
        shuffle = torch.Generator().manual_seed(context.stream("seeds"))
        images, _ = context.pool.take(torch.randperm(len(context.pool), generator=shuffle)[: self.seeds])
        self.real = quantize(images.to(context.device))
        self.critic = build_critic(context, victim.image_shape)
        self.critic_optimizer = build_optimizer(
            self.optimizer_generator, self.critic.parameters(), lr=self.lr_critic, weight_decay=self.weight_decay
        )
        self.pairs = context.generator("critic")

    def step(self) -> StepReport:
        """Ask about the real images first, then step as MAZE does."""
        if len(self.memory) or self.victim.remaining == 0:
            return super().step()
        images = self.real[: self.victim.remaining]
        self.memory.add(images, self.victim.query(images))
        return StepReport(done=self.victim.remaining == 0)

    # ------------------------------------------------------------------------------------ one iteration

    def _follow_schedule(self) -> None:
        super()._follow_schedule()
        set_lr(self.critic_optimizer, self.lr_critic * decay(self.schedule, progress(self.victim)))

    def _further_loss(self, images: Tensor) -> Tensor:
        """The critic's score of generated images, which the generator raises."""
        scores: Tensor = self.critic(stretch(images))
        return -self.gan_weight * scores.float().mean()

    def _clone_step(self, images: Tensor, answers: Tensor) -> Tensor:
        """Train the clone on a batch of this step, and then the critic."""
        loss = super()._clone_step(images, answers)
        self._critic_step(images)
        return loss

    def _critic_step(self, images: Tensor) -> Tensor:
        """Teach the critic to score real images above these; returns its loss, detached."""
        count = len(images)
        device = images.device
        chosen = self.real[torch.randint(len(self.real), (count,), generator=self.pairs, device=device)]
        real, fake = stretch(chosen), stretch(images)
        share = torch.rand(count, 1, 1, 1, generator=self.pairs, device=device)
        excess = gradient_penalty(self.critic, share * fake + (1 - share) * real)
        loss: Tensor = self.critic(fake).float().mean() - self.critic(real).float().mean() + self.penalty * excess
        descend(self.critic_optimizer, loss)
        return loss.detach()


def stretch(images: Tensor) -> Tensor:
    """Pixels in [0, 1] as the [-1, 1] that the critic sees, on which the gradient penalty's scale depends."""
    return 2 * images - 1


def gradient_penalty(critic: nn.Module, points: Tensor) -> Tensor:
    """Mean over points (N, C, H, W) of (|gradient of the score| - 1)²; gradients reach the critic's weights."""
    points = points.detach().requires_grad_()
    [slopes] = torch.autograd.grad(critic(points).float().sum(), points, create_graph=True)
    norms: Tensor = torch.linalg.vector_norm(slopes.flatten(1), dim=1)
    return (norms - 1).square().mean()


class Critic(nn.Module):
    """Up to three 4x4 convolutions of stride 2 with 32, 64 and 128 channels, then one to a score.

    Instance normalization and LeakyReLU(0.2) follow each but the last. Images (N, C, H, W) in [-1, 1] in, scores (N,)
    out. There are as many convolutions as leave at least 2x2 places.

    Args:
        image_shape: (C, H, W); H and W at least 4.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        side = min(height, width)
        layers: list[nn.Module] = []
        for wider in (32, 64, 128):
            if side < 4:
                break
            layers += [
                nn.Conv2d(channels, wider, 4, stride=2, padding=1),
                nn.InstanceNorm2d(wider, affine=True),
                nn.LeakyReLU(0.2),
            ]
            channels, side = wider, side // 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, min(4, side)))

    def forward(self, images: Tensor) -> Tensor:
        """(N,) for (N, C, H, W)."""
        scores: Tensor = self.layers(images)
        return scores.flatten(1).mean(dim=1)


def build_critic(context: AttackContext, image_shape: tuple[int, int, int]) -> Critic:
    """A `Critic` on the context's device, whose initialization depends on the context's seed alone.

    It is never compiled: a gradient penalty differentiates it twice, which compiled networks cannot.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context.stream("critic weights"))
        return Critic(image_shape).to(context.device)
