"""Dual Student: two students disagree where the victim is not yet known, so ask there."""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..components import Paper, param
from ..targets.blackbox import Victim
from ..targets.memory import InPieces
from .averages import MovingAverage
from .base import Attack, AttackContext, AttackTraits, StepReport
from .discovery import Classes, students_builder
from .generators import GeneratorName, build_generator
from .graphs import Recorded
from .learning import OptimizerName, Schedule, build_optimizer, decay, imitation_targets, progress, set_lr


@dataclass(kw_only=True)
class DualStudent(Attack):
    """Train students on the same answers, and a generator to make images they disagree on.

    By the triangle inequality |S1 - T| + |S2 - T| >= |S1 - S2|: raising the students' disagreement raises a lower
    bound on their distance from the victim, and needs no query (Beetham, Kardan, Mian and Shah, ICLR 2023,
    arXiv 2309.10058). Each step makes one generator step without queries and ``student_steps`` student batches.
    The clone is the first student's moving average. As released, it is updated in every tenth iteration of five
    student batches and looks back over some 500 batches: 0.6 % of the paper's run, but more than all of one with few
    queries, whose clone would be a student of long ago. Such a run wants a smaller ``ema_every``.

    Where the victim's interface declares labels only, students learn by cross-entropy; the generator's objective
    stays the L1 distance of the students' logits, as in the released code. Cross-entropy leaves the scale of logits
    open, and a constant in each, so that disagreement may grow without a class in dispute; with
    ``disagree_on=probabilities`` it cannot. Such an attacker need not know the number of classes: with
    ``classes=discovered``, cross-entropy and disagreement are over the classes that labels have named.

    Deviations: pixels are in [0, 1] (the released code feeds tanh's range to a victim trained on normalized
    images); released probabilities are floored before the logarithm; the generator's batch statistics start as those
    of its own images, not at zero and one; the reported clone is the last one, not the best on the test set; a moving
    average is kept of the first student only, since the others' are never used.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="data-free", access="either", queries_per_step="5 B")
    paper: ClassVar[Paper] = Paper(
        key="beetham2023dual",
        title="Dual Student Networks for Data-Free Model Stealing",
        authors="Beetham, James and Kardan, Navid and Mian, Ajmal and Shah, Mubarak",
        year=2023,
        venue="International Conference on Learning Representations",
        arxiv="2309.10058",
    )

    students: int = param(2, "how many students; with more than two, all pairs count alike", ge=2)
    batch: int = param(256, "images per student batch and generator step", ge=1)
    student_steps: int = param(5, "student batches, each queried, per generator step", ge=1)
    optimizer: OptimizerName = param("sgd", "the students' optimizer: sgd (momentum 0.9) or adam")
    lr_student: float = param(0.3, "the students' learning rate at the start", gt=0)
    weight_decay: float = param(5e-4, "the students' weight decay", ge=0)
    lr_generator: float = param(1e-4, "the generator's learning rate at the start (Adam)", gt=0)
    schedule: Schedule = param("multistep", "decay of both rates over the budget: multistep, cosine, constant")
    latent: int = param(256, "length of the generator's latent vectors", ge=1)
    width: int = param(128, "channels of the generator", ge=2)
    generator_kind: GeneratorName = param("conv", "the generator's form: conv (the paper's), dcgan or residual")
    generator_step: Literal["post_tanh", "pre_tanh"] = param(
        "post_tanh", "where disagreement is raised: on the queried images, or (released code) before tanh"
    )
    disagree_on: Literal["logits", "probabilities"] = param(
        "logits", "whose differences the generator raises: the students' logits (the released code), or probabilities"
    )
    ema: float = param(0.9, "momentum of the first student's moving average", ge=0, lt=1)
    ema_every: int = param(50, "student batches between updates of the moving average", ge=1)
    classes: Classes = param(
        "given", "the number of classes: given, or (for labels) discovered from the answers, as the heads grow"
    )
    floor: float = param(1e-7, "smallest probability that the logarithm sees", gt=0, lt=0.1)

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Build the students, the generator, their optimizers and the moving average.

        Raises `UsageError` where classes are to be discovered and answers are probabilities.
        """
        super().setup(victim, context)
        self.pupils = students_builder(self.classes, victim)(
            [context.new_clone(f"student {i}") for i in range(self.students)],
            optimizer=self.optimizer,
            lr=self.lr_student,
            weight_decay=self.weight_decay,
            recorded=context.recorded,
        )
        self.generator = build_generator(
            context, victim.image_shape, latent=self.latent, width=self.width, kind=self.generator_kind
        )
        self.latents = context.generator("latents")
        self.generator_optimizer = build_optimizer(
            "adam", self.generator.parameters(), lr=self.lr_generator, weight_decay=0, recorded=context.recorded
        )
        self.raise_disagreement = Recorded(self._raise_disagreement, ever=context.recorded)
        self.pieces = InPieces("the generator's batches (its batch normalization sees the parts)")
        self.average = MovingAverage(self.pupils.copy(0), self.ema)
        self.batches_seen = 0

    def step(self) -> StepReport:
        """One generator step, then student batches as far as the budget goes.

        The generator stands still while students learn, so the victim is asked about all their batches at once.
        """
        count = min(self.student_steps * self.batch, self.victim.remaining)
        if count == 0:
            return StepReport(done=True)
        self._follow_schedule()
        disagreement = self._generator_step()
        images = self._draw(count)
        targets = imitation_targets(self.victim.query(images), floor=self.floor, labels_only=self.victim.labels_only)
        for batch in zip(torch.split(images, self.batch), torch.split(targets, self.batch), strict=True):
            loss = self._student_step(*batch)
        return StepReport(done=self.victim.remaining == 0, losses={"student": loss, "disagreement": disagreement})

    def clone(self) -> nn.Module:
        """The first student's moving average, or the student itself before the first update."""
        return self.average.copy() if self.average.updates else self.pupils.copy(0)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """The students' disagreement on fresh images: L1 of their logits."""
        probe = torch.Generator(self.context.device).manual_seed(self.context.stream("diagnostics"))
        images = self.generator.eval()(self.generator.sample(256, probe))
        return {"disagreement_l1": float(disagreement(self.pupils.logits(images)) / self.pupils.share)}

    # ------------------------------------------------------------------------------------ one iteration

    def _follow_schedule(self) -> None:
        factor = decay(self.schedule, progress(self.victim))
        set_lr(self.generator_optimizer, self.lr_generator * factor)
        self.pupils.set_lr(self.lr_student * factor)

    def _generator_step(self) -> Tensor:
        """Raise the students' disagreement. No query; the students' weights and statistics stay."""
        return self.raise_disagreement(self.generator.sample(self.batch, self.latents))

    def _raise_disagreement(self, latents: Tensor) -> Tensor:
        def piece(part: slice) -> Tensor:
            raised = disagreement(self._outputs(self._make(latents[part]))) / self.pupils.share
            raised = raised * (len(latents[part]) / self.batch)
            (-raised).backward()  # type: ignore[no-untyped-call]
            return raised.detach()

        raised = self.pieces(piece, self.batch, restart=self.generator_optimizer.zero_grad)
        self.generator_optimizer.step()
        return torch.stack(raised).sum()

    def _make(self, latents: Tensor) -> Tensor:
        """Images to disagree on; before tanh they are in its units, as released, and brought to those of pixels."""
        generator = self.generator.train()
        return generator(latents) if self.generator_step == "post_tanh" else (generator.before_tanh(latents) + 1) / 2

    def _outputs(self, images: Tensor) -> Tensor:
        """What students may disagree on, (n, N, K)."""
        logits = self.pupils.logits(images)
        return logits if self.disagree_on == "logits" else logits.softmax(dim=2)

    @torch.no_grad()
    def _draw(self, count: int) -> Tensor:
        images: Tensor = self.generator.eval()(self.generator.sample(count, self.latents))
        return images

    def _student_step(self, images: Tensor, targets: Tensor) -> Tensor:
        """Train every student on the same batch, and now and then the average of the first."""
        loss = self.pupils.learn(images, targets)
        self.batches_seen += 1
        if self.batches_seen % self.ema_every == 0:
            self.average.update(self.pupils.weights(0))
        return loss


def disagreement(logits: Tensor) -> Tensor:
    """Mean over pairs of students, images and classes of the absolute difference of logits (n, N, K)."""
    return torch.stack([(a - b).abs().mean() for a, b in combinations(logits, 2)]).mean()
