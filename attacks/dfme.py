"""DFME: estimate from queries where the student is most wrong, and ask there."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..components import Paper, param
from ..targets.blackbox import Victim
from .base import Attack, AttackContext, AttackTraits, StepReport
from .generators import build_generator, to_pixels
from .gradients import forward_difference
from .learning import (
    OptimizerName,
    Schedule,
    build_optimizer,
    decay,
    descend,
    for_training,
    imitation_loss,
    progress,
    set_lr,
)


@dataclass(kw_only=True)
class DFME(Attack):
    """Data-free model extraction: a generator seeks images on which the student is far from the victim.

    The gradient of that distance through the victim is estimated by forward differences along random directions,
    taken before tanh so that no image leaves the box (Truong, Maini, Walls and Papernot, CVPR 2021,
    arXiv 2011.14779). Each step spends B (m + 1) queries on the generator and B on each student batch.

    Deviations: directions are drawn and evaluated on the device in one batch; the gradient is divided by the
    number of classes once, not twice (Adam makes that immaterial); pixels are in [0, 1]; released probabilities
    are floored before the logarithm; the clone is the last student, not the best on the test set. Where the
    interface declares labels only, both losses are cross-entropy (the paper has soft labels only).
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
    floor: float = param(1e-7, "smallest probability that the logarithm sees", gt=0, lt=0.1)

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Build the student, the generator and their optimizers."""
        super().setup(victim, context)
        self.student = context.new_clone("student 0")
        self.generator = build_generator(
            victim.image_shape,
            latent=self.latent,
            width=self.width,
            seed=context.stream("generator"),
            device=context.device,
        )
        self.latents = context.generator("latents")
        self.sphere = context.generator("directions")
        self.student_optimizer = build_optimizer(
            self.optimizer, self.student.parameters(), lr=self.lr_student, weight_decay=self.weight_decay
        )
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=self.lr_generator)

    def step(self) -> StepReport:
        """One generator step and the student batches, as far as the budget goes."""
        if self.victim.remaining == 0:
            return StepReport(done=True)
        factor = decay(self.schedule, progress(self.victim))
        set_lr(self.generator_optimizer, self.lr_generator * factor)
        set_lr(self.student_optimizer, self.lr_student * factor)
        losses = {}
        count = min(self.batch, self.victim.remaining // (self.directions + 1))
        if count:
            losses["generator"] = self._generator_step(count)
        for _ in range(self.student_steps):
            count = min(self.batch, self.victim.remaining)
            if count == 0:
                break
            losses["student"] = self._student_step(count)
        return StepReport(done=self.victim.remaining == 0, losses=losses)

    def clone(self) -> nn.Module:
        """The student."""
        return copy.deepcopy(self.student).eval()

    # ------------------------------------------------------------------------------------ one iteration

    def _distance(self, images: Tensor) -> Tensor:
        """How far the student is from the victim on each image; queries them all."""
        answers = self.victim.query(images)
        return imitation_loss(self.student(images), answers, floor=self.floor, labels_only=self.victim.labels_only)

    def _generator_step(self, count: int) -> Tensor:
        """Move the generator up the estimated gradient of the distance; (m + 1) queries an image."""
        self.student.eval()
        unbounded = self.generator.train().before_tanh(self.generator.sample(count, self.latents))
        gradient = forward_difference(
            lambda points: -self._distance(to_pixels(points)),
            unbounded.detach(),
            directions=self.directions,
            step=self.epsilon,
            generator=self.sphere,
        )
        surrogate_loss = (unbounded * (gradient / count)).sum()
        descend(self.generator_optimizer, surrogate_loss)
        return surrogate_loss.detach()

    def _student_step(self, count: int) -> Tensor:
        """Query one batch and train the student on it. The generator stays in training mode, as released."""
        with torch.no_grad():
            images = self.generator.train()(self.generator.sample(count, self.latents))
        for_training(self.student, count)
        loss = self._distance(images).mean()
        descend(self.student_optimizer, loss)
        return loss.detach()
