"""DFMS: a GAN on synthetic shapes that also balances the clone's classes makes the queries, without a gradient."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Paper, param
from ..targets.blackbox import Victim
from ..targets.persistence import snapshot
from .base import Attack, AttackContext, AttackTraits, StepReport
from .generators import GeneratorName, build_generator
from .learning import OptimizerName, Schedule, decay, descend, imitation_targets, shuffled
from .replay import Replay, from_bytes, quantize
from .shapes import draw_shapes
from .students import Students, build_students


@dataclass(kw_only=True)
class DFMSHL(Attack):
    """Data-free model stealing with hard labels: the top class is all that is learned from an answer.

    First, without queries, a GAN learns to make images like the proxy's synthetic shapes. A clone learns labels of
    proxy and GAN images; the GAN goes on with class diversity (the entropy of the clone's mean answer) in its loss,
    and a second clone learns labels of the proxy and of the GAN's new images (beside old ones, where the budget ends
    before there are as many). Then all three alternate: each step asks about one batch of the generator's, which the
    clone learns, and the generator is trained for realism and diversity, through the clone alone (Sanyal, Addepalli and
    Babu, CVPR 2022, arXiv 2204.11022).

    Deviations: all labels are charged, and the proxy's are kept for the second clone; each set of initial labels takes
    no more than ``initial_share`` of the budget (the paper's takes 50,000 of 8 million). The generator is a DCGAN that
    ends in a normalization. The discriminator and the GAN's optimizers go on from phase to phase, where the released
    code starts new ones, and so does the second clone's, from its first training into alternation. Images are cropped
    out of a black border, theirs out of a gray one. The proxy's images are neither cropped nor mirrored for the
    discriminator, and in alternation they are drawn with replacement. The clone's rate is not warmed up for
    alternation. Generated images are not passed through AutoAugment before they are asked. The clone is the last one,
    without the released code's choice among moving averages.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(
        threat_model="data-free", access="labels", queries_per_step="B, after the initial labels"
    )
    paper: ClassVar[Paper] = Paper(
        key="sanyal2022towards",
        title="Towards Data-Free Model Stealing in a Hard Label Setting",
        authors="Sanyal, Sunandini and Addepalli, Sravanti and Babu, R. Venkatesh",
        year=2022,
        venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        arxiv="2204.11022",
    )

    proxy: int = param(50_000, "synthetic images, drawn and not asked about but for the initial labels", ge=1)
    gray_proxy: bool = param(True, "whether synthetic images are gray, as in the released commands")
    gan_epochs: int = param(200, "passes of the GAN over the proxy before any query", ge=1)
    diversity_epochs: int = param(100, "further passes with class diversity, after the first clone", ge=0)
    initial_queries: int = param(50_000, "images that an initial clone learns: half proxy, half generated", ge=2)
    initial_share: float = param(0.25, "no more of them than this share of the budget", gt=0, le=1)
    epochs: int = param(200, "passes over them for each initial clone", ge=1)
    initial_batch: int = param(128, "images per training batch of an initial clone", ge=1)
    lr_initial: float = param(0.1, "the initial clones' learning rate at the start", gt=0)
    crop: int = param(4, "pixels around an initial clone's images, for random crops; 0: none", ge=0)
    flip: bool = param(True, "whether an initial clone's images are mirrored at random")
    initial_diversity: float = param(10.0, "weight of class diversity in the further passes", ge=0)
    diversity: float = param(500.0, "weight of class diversity in alternation (100 for CIFAR-100)", ge=0)
    batch: int = param(64, "images per step of the GAN, and per query in alternation", ge=1)
    optimizer: OptimizerName = param("sgd", "the clone's optimizer: sgd (momentum 0.9) or adam")
    lr_student: float = param(0.01, "the clone's learning rate when alternation starts", gt=0)
    weight_decay: float = param(5e-4, "the clone's weight decay", ge=0)
    lr_generator: float = param(2e-4, "generator's and discriminator's learning rate (Adam, betas 0.5, 0.999)", gt=0)
    schedule: Schedule = param("cosine", "decay of the clone's rates over its phase: multistep, cosine, constant")
    latent: int = param(100, "length of the generator's latent vectors", ge=1)
    width: int = param(128, "channels of the generator at half the image's size", ge=2)
    generator_kind: GeneratorName = param("dcgan", "the generator's form: dcgan (the paper's), conv or residual")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        """Draw the proxy; build the clone, the generator, the discriminator and their optimizers."""
        super().setup(victim, context)
        self.shapes = draw_shapes(self.proxy, victim.image_shape, context.generator("proxy"), gray=self.gray_proxy)
        self.pupils = self._new_clone(0)
        self.generator = build_generator(
            context, victim.image_shape, latent=self.latent, width=self.width, affine=True, kind=self.generator_kind
        )
        self.discriminator = build_discriminator(context, victim.image_shape)
        self.generator_optimizer, self.discriminator_optimizer = (
            torch.optim.Adam(network.parameters(), lr=self.lr_generator, betas=(0.5, 0.999), fused=True)
            for network in (self.generator, self.discriminator)
        )
        self.latents = context.generator("latents")
        self.order = context.generator("order")
        self.half = max(1, min(self.initial_queries, int(self.initial_share * victim.budget)) // 2)
        self.answers = torch.zeros(0, victim.num_classes, device=context.device)  # to the first images of the proxy
        self.made = Replay(self.half, victim.image_shape, victim.num_classes, context.device)
        self.gan_passes = 0
        self.clones_trained = 0
        self.alternating_since = 0

    def step(self) -> StepReport:
        """The proxy's labels, one pass of the GAN, one initial clone, or one batch of alternation."""
        if self.victim.remaining == 0:
            return StepReport(done=True)
        if len(self.answers) == 0:
            return self._label_proxy()
        if self.gan_passes < self.gan_epochs:
            return self._gan_pass(diversity=0)
        if self.clones_trained == 0:
            return self._initial_clone()
        if self.gan_passes < self.gan_epochs + self.diversity_epochs:
            return self._gan_pass(diversity=self.initial_diversity)
        if self.clones_trained == 1:
            return self._initial_clone()
        return self._alternate()

    def clone(self) -> nn.Module:
        """The present clone."""
        return self.pupils.copy(0)

    def state_dict(self) -> dict[str, Any]:
        """As for every attack, but for the proxy, which follows from the seed."""
        return snapshot(self, skip=("victim", "context", "shapes"))

    # ------------------------------------------------------------------------------------ the GAN

    def _gan_pass(self, *, diversity: float) -> StepReport:
        """Train discriminator and generator on every proxy image once."""
        for chosen in shuffled(len(self.shapes), self.batch, self.order):
            fake = self.generator.train()(self.generator.sample(len(chosen), self.latents))
            apart = self._discriminate(chosen, fake)
            loss = self._generate(fake, diversity)
        self.gan_passes += 1
        return StepReport(losses={"generator": loss, "discriminator": apart})

    def _discriminate(self, chosen: Tensor, fake: Tensor) -> Tensor:
        """Teach the discriminator the chosen images of the proxy from generated ones."""
        real = self.discriminator(from_bytes(self.shapes[chosen])).float()
        made = self.discriminator(fake.detach()).float()
        loss = F.softplus(-real).mean() + F.softplus(made).mean()  # cross-entropy with labels 1 and 0
        descend(self.discriminator_optimizer, loss)
        return loss.detach()

    def _generate(self, fake: Tensor, diversity: float) -> Tensor:
        """Move the generator to where the discriminator errs and, with a weight, the clone's classes balance."""
        loss = F.softplus(-self.discriminator(fake).float()).mean()
        if diversity:
            loss = loss + diversity * imbalance(self.pupils.logits(fake)[0])
        descend(self.generator_optimizer, loss)
        return loss.detach()

    # ------------------------------------------------------------------------------------ initial clones

    def _label_proxy(self) -> StepReport:
        """Have the first images of the proxy labelled, once for both initial clones."""
        self.answers = self._ask(from_bytes(self.shapes[: self.half]))
        if self.victim.remaining:
            return StepReport()
        return StepReport(done=True, losses={"student": self._train_from_scratch()})

    def _initial_clone(self) -> StepReport:
        """Have generated images labelled, as far as the budget goes, and train a clone on them and the proxy."""
        made = self._draw(min(self.half, self.victim.remaining))
        self.made.add(made, self._ask(made))
        self.pupils = self._new_clone(self.clones_trained)
        loss = self._train_from_scratch()
        self.clones_trained += 1
        self.alternating_since = self.victim.spent
        return StepReport(done=self.victim.remaining == 0, losses={"student": loss})

    def _train_from_scratch(self) -> Tensor:
        """Train the present clone on all initial labels; returns its last loss, detached."""
        images = torch.cat([self.shapes[: len(self.answers)], self.made.images[: len(self.made)]])
        targets = self._targets(torch.cat([self.answers, self.made.answers[: len(self.made)]]))
        for epoch in range(self.epochs):
            self.pupils.set_lr(self.lr_initial * decay(self.schedule, epoch / self.epochs))
            for chosen in shuffled(len(images), self.initial_batch, self.order):
                batch = jitter(from_bytes(images[chosen]), self.order, crop=self.crop, flip=self.flip)
                loss = self.pupils.learn(batch, targets[chosen])
        return loss

    def _ask(self, images: Tensor) -> Tensor:
        """Answers (N, K) to the first images that the budget covers, asked a batch at a time."""
        affordable = images[: self.victim.remaining]
        return torch.cat([self.victim.query(part) for part in torch.split(affordable, self.initial_batch)])

    @torch.no_grad()
    def _draw(self, count: int) -> Tensor:
        """Generated images in 8 bits, a batch at a time."""
        latents = torch.split(self.generator.sample(count, self.latents), self.initial_batch)
        return torch.cat([quantize(self.generator.eval()(part).float()) for part in latents])

    def _new_clone(self, number: int) -> Students:
        return build_students(
            [self.context.new_clone(f"student {number}")],
            optimizer=self.optimizer,
            lr=self.lr_initial,
            weight_decay=self.weight_decay,
        )

    def _targets(self, answers: Tensor) -> Tensor:
        """What the clone learns from answers (N, K): the top class."""
        return answers.argmax(dim=1)

    # ------------------------------------------------------------------------------------ alternation

    def _alternate(self) -> StepReport:
        """Ask about one batch; train clone, generator and discriminator on it, in that order."""
        count = min(self.batch, self.victim.remaining)
        since = self.alternating_since
        share = (self.victim.spent - since) / max(1, self.victim.budget - since)
        self.pupils.set_lr(self.lr_student * decay(self.schedule, share))
        fake = self.generator.train()(self.generator.sample(count, self.latents))
        asked = fake.detach()
        losses = {"student": self.pupils.learn(asked, self._targets(self.victim.query(asked)))}
        losses["generator"] = self._generate(fake, self.diversity)
        chosen = torch.randint(len(self.shapes), (count,), generator=self.order, device=self.order.device)
        losses["discriminator"] = self._discriminate(chosen, fake)
        return StepReport(done=self.victim.remaining == 0, losses=losses)


@dataclass(kw_only=True)
class DFMSSL(DFMSHL):
    """DFMS on soft labels: the clone learns logits recovered from answers, and all else is as with hard labels.

    (Sanyal, Addepalli and Babu, CVPR 2022, arXiv 2204.11022.) Where the interface declares labels only, this is
    DFMS-HL.

    Deviations: those of DFMS-HL. No code of DFMS-SL was released: its loss is taken to be the L1 distance to recovered
    logits that other data-free attacks have, and what else it may change is left out.
    """

    traits: ClassVar[AttackTraits] = replace(DFMSHL.traits, access="either")

    floor: float = param(1e-7, "smallest probability that the logarithm sees", gt=0, lt=0.1)

    def _targets(self, answers: Tensor) -> Tensor:
        """What the clone learns from answers (N, K): recovered logits, or the top class where that is all."""
        return imitation_targets(answers, floor=self.floor, labels_only=self.victim.labels_only)


def imbalance(logits: Tensor) -> Tensor:
    """Negative entropy, in nats, of the mean answer over images, from logits (N, K)."""
    mean = logits.softmax(dim=1).mean(dim=0)
    return (mean * (mean + 1e-5).log()).sum()


def jitter(images: Tensor, generator: torch.Generator, *, crop: int, flip: bool) -> Tensor:
    """Random crops of images (N, C, H, W) in a black border, each mirrored with probability a half.

    Args:
        crop: width of the border in pixels; 0 leaves images in place.
        flip: whether images are mirrored.
    """
    count, _, height, width = images.shape
    device = images.device
    offsets = torch.randint(2 * crop + 1, (2, count, 1), generator=generator, device=device)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (crop, crop, crop, crop))
    each = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()


class Discriminator(nn.Module):
    """DCGAN's: up to four 4x4 convolutions of stride 2 with 64 to 512 channels, then one to a logit.

    Batch normalization after each but the first and the last, LeakyReLU(0.2) after each but the last. Images
    (N, C, H, W) in [0, 1] in, logits (N,) of being real out: the mean over the places that are left. There are as many
    convolutions as leave at least 2x2 places.

    Args:
        image_shape: (C, H, W).
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        side = min(height, width)
        layers: list[nn.Module] = []
        for wider in (64, 128, 256, 512):
            if side < 4:
                break
            layers.append(nn.Conv2d(channels, wider, 4, stride=2, padding=1, bias=False))
            if len(layers) > 1:
                layers.append(nn.BatchNorm2d(wider))
            layers.append(nn.LeakyReLU(0.2))
            channels, side = wider, side // 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, min(3, side), bias=False))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(N,) for (N, C, H, W)."""
        logits: Tensor = self.layers(2 * images - 1)
        return logits.flatten(1).mean(dim=1)


def build_discriminator(context: AttackContext, image_shape: tuple[int, int, int]) -> Discriminator:
    """A `Discriminator` on the context's device, whose initialization depends on the context's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context.stream("discriminator"))
        discriminator = Discriminator(image_shape)
    return context.prepare(discriminator)
