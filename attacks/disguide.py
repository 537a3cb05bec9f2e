"""DisGUIDE: ask where two clones disagree and all classes come up, and replay what was answered."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..components import Paper, param
from ..targets.blackbox import Victim
from .base import Attack, AttackContext, AttackTraits, StepReport
from .discovery import Classes, students_builder
from .generators import GeneratorName, build_generator
from .learning import OptimizerName, Schedule, build_optimizer, decay, descend, imitation_targets, progress, set_lr
from .replay import Replay, quantize


@dataclass(kw_only=True)
class DisGUIDE(Attack):
    """Clones learn the same answers; a generator makes images on which they disagree, of all classes alike.

    The generator minimizes minus the standard deviation of the clones' probabilities, plus ``diversity`` times the
    negative entropy of their mean over the batch; that needs no query (Rosenthal, Enouen, Pham and Tan, AAAI 2023).
    Each step makes one generator step, asks about one batch, which all clones learn, and has them learn
    ``replay_steps`` batches of earlier answers. Every eighth image in color has one channel in all three.

    Where the victim's interface declares labels only, clones learn by cross-entropy. Such an attacker need not know the
    number of classes: with ``classes=discovered``, probabilities are over the classes that labels have named. The
    paper's accuracy is that of the clones' soft vote; the clone here is the first of them, as for other attacks,
    unless ``combine`` says ``vote``.

    Deviations: pixels are in [0, 1] (the paper's mode in which the attacker does not know the service's
    normalization); queried images are rounded to 8 bits, so that they are replayed as they were answered; replay draws
    with replacement; released probabilities are floored before the logarithm; the generator's batch statistics start as
    those of its own images, not at zero and one; the clone is the last one, not the best on the test set.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="data-free", access="either", queries_per_step="B")
    paper: ClassVar[Paper] = Paper(
        key="rosenthal2023disguide",
        title="DisGUIDE: Disagreement-Guided Data-Free Model Extraction",
        authors="Rosenthal, Jonathan and Enouen, Eric and Pham, Hung Viet and Tan, Lin",
        year=2023,
        venue="AAAI Conference on Artificial Intelligence",
    )

    students: int = param(2, "how many clones", ge=2)
    batch: int = param(256, "images per clone batch and generator step", ge=1)
    student_steps: int = param(1, "new batches, each queried, per generator step", ge=1)
    replay_steps: int = param(3, "batches of earlier answers per generator step, without queries", ge=0)
    replay_size: int = param(1_000_000, "images kept for replay, oldest overwritten first", ge=1)
    diversity: float = param(0.2, "weight of class diversity in the generator's loss (0.04 for CIFAR-100)", ge=0)
    gray_every: int = param(8, "one in so many color images is gray; 0: none", ge=0)
    optimizer: OptimizerName = param("sgd", "the clones' optimizer: sgd (momentum 0.9) or adam")
    lr_student: float = param(0.03, "the clones' learning rate at the start", gt=0)
    weight_decay: float = param(5e-4, "the clones' weight decay", ge=0)
    lr_generator: float = param(1e-4, "the generator's learning rate at the start (Adam)", gt=0)
    schedule: Schedule = param(
        "multistep", "decay of both rates over the budget: multistep (at 40 and 80 %), cosine, constant"
    )
    latent: int = param(256, "length of the generator's latent vectors", ge=1)
    width: int = param(128, "channels of the generator", ge=2)
    generator_kind: GeneratorName = param("conv", "the generator's form: conv (the paper's), dcgan or residual")
    combine: Literal["first", "vote"] = param(
        "first", "what the clone is: the first one, or (the paper's accuracy) the soft vote of all"
    )
    classes: Classes = param(
        "given", "the number of classes: given, or (for labels) discovered from the answers, as the heads grow"
    )
    floor: float = param(1e-7, "smallest probability that the logarithm sees", gt=0, lt=0.1)

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Build the clones, the generator, their optimizers and the memory of answers.

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
        self.generator_optimizer = build_optimizer(
            "adam", self.generator.parameters(), lr=self.lr_generator, weight_decay=0
        )
        self.latents = context.generator("latents")
        self.channels = context.generator("gray")
        self.draws = context.generator("replay")
        capacity = min(self.replay_size, victim.budget)
        self.memory = Replay(capacity, victim.image_shape, victim.num_classes, context.device)

    def step(self) -> StepReport:
        """One generator step, new batches as far as the budget goes, and replay.

        The generator stands still while clones learn, so the victim is asked about all new batches at once.
        """
        count = min(self.student_steps * self.batch, self.victim.remaining)
        if count == 0:
            return StepReport(done=True)
        self._follow_schedule()
        losses = {"generator": self._generator_step()}
        images = self._draw(count)
        answers = self.victim.query(images)
        self.memory.add(images, answers)
        for batch in zip(torch.split(images, self.batch), torch.split(answers, self.batch), strict=True):
            losses["student"] = self._learn(*batch)
        for _ in range(self.replay_steps):
            losses["replay"] = self._learn(*self.memory.sample(min(self.batch, len(self.memory)), self.draws))
        return StepReport(done=self.victim.remaining == 0, losses=losses)

    def clone(self) -> nn.Module:
        """The first clone, or the vote of all."""
        if self.combine == "vote":
            return SoftVote([self.pupils.copy(i) for i in range(self.students)]).eval()
        return self.pupils.copy(0)

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """The clones' disagreement on fresh images, and the entropy of their mean answer in nats."""
        probe = torch.Generator(self.context.device).manual_seed(self.context.stream("diagnostics"))
        probs = self.pupils.logits(self.generator.eval()(self.generator.sample(256, probe))).softmax(dim=2)
        apart = disagreement(probs) / self.pupils.share
        return {"disagreement_std": float(apart), "class_entropy": -float(imbalance(probs))}

    # ------------------------------------------------------------------------------------ one iteration

    def _follow_schedule(self) -> None:
        factor = decay(self.schedule, progress(self.victim), steps=(0.4, 0.8))
        set_lr(self.generator_optimizer, self.lr_generator * factor)
        self.pupils.set_lr(self.lr_student * factor)

    def _generator_step(self) -> Tensor:
        """Raise disagreement and diversity. No query; the clones' weights and statistics stay."""
        images = self.generator.train()(self.generator.sample(self.batch, self.latents))
        probs = self.pupils.logits(some_gray(images, self.gray_every, self.channels)).softmax(dim=2)
        loss = self.diversity * imbalance(probs) - disagreement(probs) / self.pupils.share
        descend(self.generator_optimizer, loss)
        return loss.detach()

    @torch.no_grad()
    def _draw(self, count: int) -> Tensor:
        """Images in 8 bits; in every batch, the same places are gray, and the same channel is in all three."""
        images = self.generator.eval()(self.generator.sample(count, self.latents))
        parts = [some_gray(part, self.gray_every, self.channels) for part in torch.split(images, self.batch)]
        return quantize(torch.cat(parts).float())

    def _learn(self, images: Tensor, answers: Tensor) -> Tensor:
        """Train every clone on the same batch."""
        targets = imitation_targets(answers, floor=self.floor, labels_only=self.victim.labels_only)
        return self.pupils.learn(images, targets)


def disagreement(probs: Tensor) -> Tensor:
    """Mean over images and classes of the standard deviation over clones (with Bessel's correction) of (n, N, K)."""
    return probs.std(dim=0).mean()


def imbalance(probs: Tensor) -> Tensor:
    """Negative entropy, in nats, of the mean over clones and images of probabilities (n, N, K), raised by 1e-6."""
    mean = (probs + 1e-6).mean(dim=(0, 1))
    return (mean * mean.log()).sum()


def some_gray(images: Tensor, every: int, generator: torch.Generator) -> Tensor:
    """Make the first of every so many color images (N, 3, H, W) gray: one channel, drawn for all, in all three.

    Gradients reach the drawn channel in its own place only, as in the released code. Images of one channel, and all
    images for ``every`` = 0, stay as they are.
    """
    if every == 0 or images.shape[1] != 3:
        return images
    drawn = torch.randint(3, (1,), generator=generator, device=images.device)
    others = (torch.arange(3, device=images.device) != drawn).view(1, 3, 1, 1)
    turned = (torch.arange(len(images), device=images.device) % every == 0).view(-1, 1, 1, 1)
    return torch.where(turned & others, images.detach().index_select(1, drawn), images)


class SoftVote(nn.Module):
    """Several networks as one, whose probabilities are the mean of theirs: images in, log-probabilities (N, K) out."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) for (N, C, H, W)."""
        logs = torch.stack([network(images).float().log_softmax(dim=1) for network in self.networks])
        voted: Tensor = logs.logsumexp(dim=0) - math.log(len(self.networks))
        return voted
