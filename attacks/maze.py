"""MAZE: estimate along many directions where the clone is most wrong, ask there, and replay what was answered."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..targets.blackbox import Victim
from .base import Attack, AttackContext, AttackTraits, StepReport
from .generators import GeneratorName, build_generator, to_pixels
from .gradients import forward_difference
from .learning import OptimizerName, Schedule, build_optimizer, decay, descend, progress, set_lr
from .replay import Replay, quantize
from .students import build_students


@dataclass(kw_only=True)
class MAZE(Attack):
    """Zeroth-order gradients lead a generator to images whose answers the clone diverges from.

    The generator climbs KL(victim || clone), whose gradient is estimated by forward differences along ``directions``
    random directions before tanh; the clone descends it (Kariyappa, Prakash and Qureshi, CVPR 2021,
    arXiv 2005.03161). Each step spends B (m + 1) queries on the generator and 4 B on clone batches: the first of five
    is the generator's own, already answered. Then the clone learns ``replay_steps`` batches of earlier answers, of
    which the last clone batch of every step is kept, as in the released code.

    Deviations: pixels are in [0, 1]. Clone batches but the first are rounded to 8 bits before they are asked, so that
    they are replayed as they were answered. Replay draws with replacement from the last ``replay_size`` images, where
    the released code shuffles all there ever were.
    The clone is in evaluation mode while differences are taken, which are in float32 whatever the precision (the
    released code leaves it in training mode, so that each direction has batch statistics of its own). Answers that
    are labels make the divergence cross-entropy (the paper has soft labels only).
    """

    traits: ClassVar[AttackTraits] = AttackTraits(
        threat_model="data-free", access="probabilities", queries_per_step="(m + 5) B"
    )
    paper: ClassVar[Paper] = Paper(
        key="kariyappa2021maze",
        title="MAZE: Data-Free Model Stealing Attack Using Zeroth-Order Gradient Estimation",
        authors="Kariyappa, Sanjay and Prakash, Atul and Qureshi, Moinuddin K.",
        year=2021,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="2005.03161",
    )

    batch: int = param(128, "images per clone batch and generator step", ge=1)
    student_steps: int = param(5, "clone batches per generator step, of which the first is the generator's", ge=2)
    replay_steps: int = param(10, "batches of earlier answers that the clone learns from, without queries", ge=0)
    replay_size: int = param(1_000_000, "images kept for replay, oldest overwritten first", ge=1)
    directions: int = param(10, "m, random directions of the gradient estimate", ge=1)
    epsilon: float = param(1e-3, "length of the forward difference, before tanh", gt=0)
    optimizer: OptimizerName = param("sgd", "the clone's optimizer: sgd (momentum 0.9) or adam")
    lr_student: float = param(0.1, "the clone's learning rate at the start", gt=0)
    weight_decay: float = param(5e-4, "weight decay of clone and generator", ge=0)
    optimizer_generator: OptimizerName = param("sgd", "the generator's optimizer: sgd (momentum 0.9) or adam")
    lr_generator: float = param(1e-4, "the generator's learning rate at the start (1e-3 for Fashion-MNIST)", gt=0)
    schedule: Schedule = param("cosine", "decay of the rates over the budget: multistep, cosine, constant")
    latent: int = param(100, "length of the generator's latent vectors", ge=1)
    width: int = param(128, "channels of the generator", ge=2)
    generator_kind: GeneratorName = param("conv", "the generator's form: conv (the paper's), dcgan or residual")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Build the clone, the generator, their optimizers and the memory of answers."""
        super().setup(victim, context)
        self.pupils = build_students(
            [context.new_clone("student 0")],
            optimizer=self.optimizer,
            lr=self.lr_student,
            weight_decay=self.weight_decay,
            loss=divergence,
        )
        self.generator = build_generator(
            context,
            victim.image_shape,
            latent=self.latent,
            width=self.width,
            affine=True,
            kind=self.generator_kind,
        )
        self.generator_optimizer = build_optimizer(
            self.optimizer_generator,
            self.generator.parameters(),
            lr=self.lr_generator,
            weight_decay=self.weight_decay,
        )
        self.latents = context.generator("latents")
        self.sphere = context.generator("directions")
        self.draws = context.generator("replay")
        capacity = min(self.replay_size, victim.budget)
        self.memory = Replay(capacity, victim.image_shape, victim.num_classes, context.device)

    def step(self) -> StepReport:
        """One generator step, the clone's batches as far as the budget goes, and replay.

        The generator's weights stand still while the clone learns, so the victim is asked about all new batches at
        once.
        """
        if self.victim.remaining == 0:
            return StepReport(done=True)
        self._follow_schedule()
        losses = {}
        batches = []
        count = min(self.batch, self.victim.remaining // (self.directions + 1))
        if count:
            losses["generator"], images, answers = self._generator_step(count)
            batches.append((images, answers))
        count = min((self.student_steps - 1) * self.batch, self.victim.remaining)
        if count:
            images = self._draw(count)
            answers = self.victim.query(images)
            batches += zip(torch.split(images, self.batch), torch.split(answers, self.batch), strict=True)
            self.memory.add(*batches[-1])
        for images, answers in batches:
            losses["student"] = self._clone_step(images, answers)
        for _ in range(self.replay_steps if len(self.memory) else 0):
            losses["replay"] = self.pupils.learn(*self.memory.sample(min(self.batch, len(self.memory)), self.draws))
        return StepReport(done=self.victim.remaining == 0, losses=losses)

    def clone(self) -> nn.Module:
        """The clone."""
        return self.pupils.copy(0)

    # ------------------------------------------------------------------------------------ one iteration

    def _follow_schedule(self) -> None:
        factor = decay(self.schedule, progress(self.victim))
        set_lr(self.generator_optimizer, self.lr_generator * factor)
        self.pupils.set_lr(self.lr_student * factor)

    def _generator_step(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Move the generator up the estimated gradient of the divergence; (m + 1) queries an image.

        Returns its loss, detached, and the images with their answers, for the clone to learn from.
        """
        unbounded = self.generator.train().before_tanh(self.generator.sample(count, self.latents)).float()
        answered: list[Tensor] = []

        def nearness(points: Tensor) -> Tensor:
            images = to_pixels(points)
            answers = self.victim.query(images)
            answered.append(answers[:count])  # the points themselves come first, then those along the directions
            return -divergence(self.pupils.logits(images)[0], answers)

        gradient = forward_difference(
            nearness,
            unbounded.detach(),
            directions=self.directions,
            step=self.epsilon,
            generator=self.sphere,
        )
        images = to_pixels(unbounded)
        loss = (unbounded * (gradient / count)).sum() + self._further_loss(images)
        descend(self.generator_optimizer, loss)
        return loss.detach(), images.detach(), answered[0]

    def _further_loss(self, images: Tensor) -> Tensor:
        """What else the generator minimizes: nothing, without data."""
        return images.new_zeros(())

    @torch.no_grad()
    def _draw(self, count: int) -> Tensor:
        """Images in 8 bits, made a batch at a time: the generator stays in training mode, as released."""
        latents = self.generator.sample(count, self.latents)
        images = torch.cat([self.generator.train()(part) for part in torch.split(latents, self.batch)])
        return quantize(images.float())

    def _clone_step(self, images: Tensor, answers: Tensor) -> Tensor:
        """Train the clone on a batch of this step."""
        return self.pupils.learn(images, answers)


def divergence(logits: Tensor, answers: Tensor) -> Tensor:
    """KL(answers || softmax(logits)) for each image: (N,) from logits and answers (N, K). Zeros in answers are fine."""
    return F.kl_div(F.log_softmax(logits.float(), dim=1), answers, reduction="none").sum(dim=1)
