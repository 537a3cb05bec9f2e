"""DFME: estimate from queries where the student is most wrong, and ask there."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..components import Paper, param
from ..targets.blackbox import Victim
from .base import Attack, AttackContext, AttackTraits, StepReport
from .generators import GeneratorName, build_generator, to_pixels
from .gradients import forward_difference
from .learning import (
    OptimizerName,
    Schedule,
    build_optimizer,
    decay,
    descend,
    imitation_loss,
    imitation_targets,
    progress,
    set_lr,
)
from .students import build_students


@dataclass(kw_only=True)
class DFME(Attack):
    """Data-free model extraction: a generator seeks images on which the student is far from the victim.

    The gradient of that distance through the victim is estimated by forward differences along random directions,
    taken before tanh so that no image leaves the box (Truong, Maini, Walls and Papernot, CVPR 2021,
    arXiv 2011.14779). Each step spends B (m + 1) queries on the generator and B on each student batch.

    Deviations: directions are drawn and evaluated on the device in one batch; the gradient is divided by the
    number of classes once, not twice (Adam makes that immaterial); pixels are in [0, 1]; released probabilities
    are floored before the logarithm; the clone is the last student, not the best on the test set. Where the
    interface declares labels only, both losses are cross-entropy (the paper has soft labels only). Rates fall at 10,
    30 and 50 % of the budget, as on CIFAR-10; the authors let them fall at 50 and 80 % on SVHN.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(
        threat_model="data-free", access="probabilities", queries_per_step="(m + 6) B"
    )
    paper: ClassVar[Paper] = Paper(
        key="truong2021data",
        title="Data-Free Model Extraction",
        authors="Truong, Jean-Baptiste and Maini, Pratyush and Walls, Robert J. and Papernot, Nicolas",
        year=2021,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="2011.14779",
    )

    batch: int = param(256, "images per student batch and generator step", ge=1)
    student_steps: int = param(5, "student batches per generator step", ge=1)
    directions: int = param(1, "m, random directions of the gradient estimate", ge=1)
    epsilon: float = param(1e-3, "length of the forward difference, before tanh", gt=0)
    optimizer: OptimizerName = param("sgd", "the student's optimizer: sgd (momentum 0.9) or adam")
    lr_student: float = param(0.1, "the student's learning rate at the start", gt=0)
    weight_decay: float = param(5e-4, "the student's weight decay", ge=0)
    lr_generator: float = param(1e-4, "the generator's learning rate at the start (Adam)", gt=0)
    schedule: Schedule = param("multistep", "decay of both rates over the budget: multistep, cosine, constant")
    latent: int = param(256, "length of the generator's latent vectors", ge=1)
    width: int = param(128, "channels of the generator", ge=2)
    generator_kind: GeneratorName = param("conv", "the generator's form: conv (the paper's), dcgan or residual")
    floor: float = param(1e-7, "smallest probability that the logarithm sees", gt=0, lt=0.1)

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Build the student, the generator and their optimizers."""
        super().setup(victim, context)
        self.pupils = build_students(
            [context.new_clone("student 0")],
            optimizer=self.optimizer,
            lr=self.lr_student,
            weight_decay=self.weight_decay,
            recorded=context.recorded,
        )
        self.generator = build_generator(
            context, victim.image_shape, latent=self.latent, width=self.width, kind=self.generator_kind
        )
        self.latents = context.generator("latents")
        self.sphere = context.generator("directions")
        self.generator_optimizer = build_optimizer(
            "adam", self.generator.parameters(), lr=self.lr_generator, weight_decay=0
        )

    def step(self) -> StepReport:
        """One generator step and the student batches, as far as the budget goes.

        The generator's weights stand still while the student learns, so the victim is asked about all its batches
        at once.
        """
        if self.victim.remaining == 0:
            return StepReport(done=True)
        factor = decay(self.schedule, progress(self.victim))
        set_lr(self.generator_optimizer, self.lr_generator * factor)
        self.pupils.set_lr(self.lr_student * factor)
        losses = {}
        count = min(self.batch, self.victim.remaining // (self.directions + 1))
        if count:
            losses["generator"] = self._generator_step(count)
        count = min(self.student_steps * self.batch, self.victim.remaining)
        if count:
            images = self._draw(count)
            targets = self._ask(images)
            for batch in zip(torch.split(images, self.batch), torch.split(targets, self.batch), strict=True):
                losses["student"] = self.pupils.learn(*batch)
        return StepReport(done=self.victim.remaining == 0, losses=losses)

    def clone(self) -> nn.Module:
        """The student."""
        return self.pupils.copy(0)

    # ------------------------------------------------------------------------------------ one iteration

    def _ask(self, images: Tensor) -> Tensor:
        """Query images; returns what the victim's answers tell the student."""
        return imitation_targets(self.victim.query(images), floor=self.floor, labels_only=self.victim.labels_only)

    def _generator_step(self, count: int) -> Tensor:
        """Move the generator up the estimated gradient of the student's distance; (m + 1) queries an image."""

        def nearness(points: Tensor) -> Tensor:
            images = to_pixels(points)
            targets = self._ask(images)
            return -imitation_loss(self.pupils.logits(images)[0], targets)

        unbounded = self.generator.train().before_tanh(self.generator.sample(count, self.latents)).float()
        gradient = forward_difference(
            nearness,
            unbounded.detach(),
            directions=self.directions,
            step=self.epsilon,
            generator=self.sphere,
        )
        surrogate_loss = (unbounded * (gradient / count)).sum()
        descend(self.generator_optimizer, surrogate_loss)
        return surrogate_loss.detach()

    @torch.no_grad()
    def _draw(self, count: int) -> Tensor:
        """Images, made a batch at a time: the generator stays in training mode, as released, and its batches differ."""
        latents = self.generator.sample(count, self.latents)
        return torch.cat([self.generator.train()(part) for part in torch.split(latents, self.batch)])
