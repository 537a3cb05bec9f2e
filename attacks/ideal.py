"""IDEAL: images that the student is sure of, one batch a round, each labelled once."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..targets.blackbox import Victim
from .base import Attack, AttackContext, AttackTraits, StepReport
from .generators import GeneratorName, build_generator
from .learning import OptimizerName, Schedule, decay, progress, shuffled
from .replay import Replay, quantize
from .students import build_students
from .synthesis import best_images, jitter, restart


@dataclass(kw_only=True)
class IDEAL(Attack):
    """Query-efficient data-free learning: a generator that starts anew each round asks the student, not the victim.

    For ``generator_steps`` it is trained on one batch of latent vectors until the student gives its images, shifted
    and mirrored, balanced labels; the least loss's images join a pool. Their top classes are the only queries. Then
    the student passes over the pool (Zhang, Chen and Lyu, ICLR 2023, arXiv 2205.11158).

    Deviations: every image is labelled once, as it is stored; the released code shifts and mirrors the pool anew in
    every pass and asks about all of it again, 1.26 million queries on MNIST where it counts 25,000, so expect less than
    the paper has. The student learns the images as they were asked about, in 8 bits. The generator ends in a
    normalization and tanh, the released one in a sigmoid. As in the released code, latent vectors stay as drawn and the
    entropy term rewards uncertainty within each image. The clone is the last student, not the best on the test set.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="data-free", access="labels", queries_per_step="B")
    paper: ClassVar[Paper] = Paper(
        key="zhang2023ideal",
        title="{IDEAL}: Query-Efficient Data-Free Learning from Black-Box Models",
        authors="Zhang, Jie and Chen, Chen and Lyu, Lingjuan",
        year=2023,
        venue="International Conference on Learning Representations",
        arxiv="2205.11158",
    )

    images: int = param(250, "B, images made and queried per round", ge=1)
    generator_steps: int = param(30, "generator steps per round (5 for CIFAR-10)", ge=1)
    entropy: float = param(5.0, "weight of the mean of p log p in the generator's loss", ge=0)
    shift: int = param(4, "pixels that images are shifted by, at most, when the student judges them", ge=0)
    round_epochs: int = param(1, "passes over the pool after each round", ge=1)
    batch: int = param(250, "images per training batch", ge=1)
    pool: int = param(100_000, "images kept, oldest overwritten first", ge=1)
    optimizer: OptimizerName = param("sgd", "the student's optimizer: sgd (momentum 0.9) or adam")
    lr_student: float = param(0.01, "the student's learning rate at the start", gt=0)
    weight_decay: float = param(5e-4, "the student's weight decay", ge=0)
    lr_generator: float = param(1e-3, "the generator's learning rate (Adam)", gt=0)
    schedule: Schedule = param("constant", "decay of the student's rate over the budget: multistep, cosine, constant")
    latent: int = param(256, "length of the generator's latent vectors", ge=1)
    width: int = param(128, "channels of the generator", ge=2)
    generator_kind: GeneratorName = param(
        "conv", "the generator's form: conv (the paper's but for its end), dcgan or residual"
    )

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Build the student, the generator and the pool."""
        super().setup(victim, context)
        self.pupils = build_students(
            [context.new_clone("student 0")],
            optimizer=self.optimizer,
            lr=self.lr_student,
            weight_decay=self.weight_decay,
        )
        self.generator = build_generator(
            context, victim.image_shape, latent=self.latent, width=self.width, kind=self.generator_kind, affine=True
        )
        self.latents = context.generator("latents")
        self.random = context.generator("synthesis")
        self.shuffle = context.generator("training order")
        capacity = min(self.pool, victim.budget)
        self.memory = Replay(capacity, victim.image_shape, victim.num_classes, context.device)

    def step(self) -> StepReport:
        """One round: synthesize a batch, have it labelled, pass over the pool."""
        count = min(self.images, self.victim.remaining)
        if count == 0:
            return StepReport(done=True)
        self.pupils.set_lr(self.lr_student * decay(self.schedule, progress(self.victim)))
        images = quantize(self._synthesize())[:count]
        self.memory.add(images, self.victim.query(images))
        loss = self._learn()
        return StepReport(done=self.victim.remaining == 0, losses={"student": loss})

    def clone(self) -> nn.Module:
        """The student."""
        return self.pupils.copy(0)

    # ---------------------------------------------------------------------------------------- one round

    def _synthesize(self) -> Tensor:
        """Images (B, C, H, W), the first made to be of class 0 by the student, the second of class 1, and so on."""
        restart(self.generator, self.random)
        labels = torch.arange(self.images, device=self.context.device) % self.victim.num_classes

        def judge(images: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.pupils.logits(jitter(images, self.random, shift=self.shift))[0]
            return synthesis_loss(logits, labels, self.entropy), images.float()

        return best_images(
            self.generator,
            self.generator.sample(self.images, self.latents),
            judge,
            steps=self.generator_steps,
            optimizer=torch.optim.Adam(
                self.generator.parameters(), lr=self.lr_generator, betas=(0.5, 0.999), fused=True
            ),
        )

    def _learn(self) -> Tensor:
        """Train the student on the pool's labels; returns the last batch's loss."""
        for _ in range(self.round_epochs):
            for chosen in shuffled(len(self.memory), self.batch, self.shuffle):
                images, answers = self.memory.take(chosen)
                loss = self.pupils.learn(images, answers.argmax(dim=1))
        return loss


def synthesis_loss(logits: Tensor, labels: Tensor, entropy: float) -> Tensor:
    """Cross-entropy of logits (N, K) with labels (N,), plus ``entropy`` times the mean of p log p over all N K."""
    logs = logits.log_softmax(dim=1)
    return F.cross_entropy(logits, labels) + entropy * (logs.exp() * logs).mean()
