"""Whether a defense does what it declares: the questions that tell a benchmark from its users.

A defense looks good by cheating if it answers the harness's questions otherwise than its users', or the attack
otherwise than either. So the same images are asked about as a newcomer, as another customer and under the attack's own
account; alone, among others, in another order and again; before the attack, at its milestones and after it. A sample
of the attack's own queries is asked about once more by a newcomer. Test images are compared with copies that nobody
could tell from them, and the accuracy on the test set with that on a shifted copy of it.

What a defense declares in its `Traits` it may do: answers of a stochastic one are compared by how far they are from the
clean ones on average, and what depends on earlier queries is compared only where the traits leave no room for that, as
before the attack, when its account is new to everybody. What a defense holds against an account in the course of time
is held against an honest one that goes on asking. Whatever is asked here is charged to nobody, and leaves no trace in
the defense.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..defenses.base import Chain, Traits
from ..defenses.deployment import Deployment
from ..leaderboard.flags import (
    BATCHED,
    DEARER,
    DISTORTED,
    DRIFTED,
    FRAGILE,
    LATE,
    MOVED,
    ORDERED,
    PERSONAL,
    RECOGNIZED,
    REPEATED,
    SINGLED_OUT,
    STANDARD_ERRORS,
    TIRED,
    fragile,
    moved,
)
from ..leaderboard.record import CurvePoint, Detection, Paid
from ..targets.datasets.base import Images, TensorImages
from ..targets.persistence import restore, snapshot
from .traffic import Sample, Traffic

PROBES = 32
"""Test images, and as many images of noise, that are asked about in every way."""
ALONE = 32
"""The first so many of them are asked about one by one."""
REPEATS = 4
"""Answers of a stochastic defense that are averaged."""
COPIED_IMAGES = 256
"""Test images whose answers are compared with those to copies that nobody else has."""
CROWD = 1024
"""The batch in which honest users' costs are measured."""
HONEST_QUERIES = 10_000
"""An honest account that goes on asking stops here, or where the attack stopped, or where the images end."""
SHIFTED_IMAGES = 1000
"""Test images whose shifted copies are asked about."""

MATERIAL = 0.02
"""Mean L1 distance between answers that is too much where they should be equal, beyond rounding and chance."""
ROUNDING = 20.0
"""How many times the bare target's own differences count as rounding: defenses may enlarge them."""

_SEED = 20_261
"""Which images and shifts: the same in every run, but for the copies that a defense must not know."""


class Answers(NamedTuple):
    """Answers to the same N images."""

    clean: Tensor
    """The bare target's, (N, K)."""
    released: Tensor
    """What was released each time that they were asked about, (R, N, K)."""


class HonestAccount(NamedTuple):
    """What became of an honest account that went on asking."""

    asked: int
    """Images that it asked about."""
    tired: bool
    """Whether it was answered otherwise than a newcomer, on the way or in the end."""
    flagged: int | None
    """The first image for which it was taken for an attack, counted from 1; None if it never was."""


class Reliability:
    """Asks a deployment the same things in many ways, and remembers what it answered before the attack.

    Args:
        deployment: target and defense as attackers and users meet them.
        test: the target's held-out images.
        more: the images that it was trained on, for an honest account that has asked about those.
        attacker: the account that the attack asks under.
        visitor: the account of a customer who is not the attack.
        secret: a seed that no defense can know, for copies of images that none can have seen.
    """

    def __init__(
        self,
        deployment: Deployment,
        test: Images,
        more: Callable[[], Images],
        *,
        attacker: str,
        visitor: str,
        secret: int,
    ) -> None:
        self.deployment = deployment
        self.test = test
        self.more = more
        self.attacker = attacker
        self.visitor = visitor
        self.secret = secret
        self.images = _probes(test)
        self.early: list[Tensor] = []
        self.dearest: Tensor | None = None
        self.acted = 0
        self.personal = False
        self.drifted = False

    @property
    def _traits(self) -> Traits:
        return self.deployment.defense.traits

    # ------------------------------------------------------------------------------------------ in time

    def begin(self) -> None:
        """Look before the attack's first query, while its account is as new to the defense as any other."""
        self.personal = self._personal(self.visitor, self.attacker)
        self.look()

    def look(self, queries: int = 0) -> Answers:
        """Ask as a newcomer: the first time to remember the answers, from then on to compare with them.

        A defense that declares one state for all customers may change its answers: it is asked what they cost. One that
        keeps a state for each may change its answers to the attack: it is asked when that was.

        Args:
            queries: how many the attack has made.

        Returns:
            What a newcomer is answered now.
        """
        [now] = self._ask([self.images], None)
        if self.deployment.defense.shares_state():
            paid = self._paid(now)
            self.dearest = paid if self.dearest is None or paid.mean() > self.dearest.mean() else self.dearest
        elif self.early:
            self.drifted |= self._differ(Answers(*self.early), now)
        else:
            self.early = list(now)
        if self._remembers and not self.acted and self._differ(now, *self._ask([self.images], self.attacker)):
            self.acted = queries
        return now

    def _paid(self, answers: Answers) -> Tensor:
        """What honest users pay (N,) for the test images among those that are asked about."""
        return _damage(answers)[::2]

    # ------------------------------------------------------------------------------------------- judging

    def flags(self, traffic: Traffic, paid: Paid, curve: Iterable[CurvePoint], accuracy: float) -> list[str]:
        """What a reader should know before trusting the numbers, in sentences that do not depend on the numbers.

        Args:
            traffic: what was noted of the attack's queries.
            paid: what an honest user paid.
            curve: what one paid between the attack's queries.
            accuracy: the undefended target's.
        """
        now = self.look(traffic.asked)
        found = {DRIFTED: self.drifted, BATCHED: self._batched(traffic.largest), RECOGNIZED: self._recognized()}
        found |= {PERSONAL: self.personal or self._personal(*self._new()), FRAGILE: fragile(paid, accuracy)}
        if not self._traits.stateful:
            found |= {ORDERED: self._ordered(), SINGLED_OUT: self._singled_out(traffic.sample)}
        if not (self._traits.stateful or self._traits.stochastic):
            found[REPEATED] = self._repeated()
        found[DISTORTED] = self._traits.argmax_preserving and paid.argmax_changed > 0
        found[MOVED] = moved(paid, curve, len(self.test) if self._traits.stochastic else None)
        if self.dearest is not None:
            found[DEARER] = beyond_chance(self.dearest - self._paid(now))
        if self._remembers:
            honest = self._goes_on(traffic.asked)
            found |= {TIRED: honest.tired, LATE: _late(traffic.detection(), self.acted, honest)}
        return sorted(flag for flag, holds in found.items() if holds)

    def _batched(self, size: int) -> bool:
        """One customer's batch is answered as if its images had come one by one; true of stateful defenses as well.

        So is one of the attack's size, and one as large as honest users' costs are measured in.
        """
        [together] = self._ask([self.images], self.visitor)
        others = [_joined(self._ask(list(torch.split(self.images[:ALONE], 1)), self.visitor))]
        others += [answers for crowd in (size, CROWD) for answers in self._ask([self._crowd(crowd)], self.visitor)]
        return any(self._differ(*_first(together, each)) for each in others)

    def _crowd(self, size: int) -> Tensor:
        """The same images, or the first of them, at the front of a batch of ``size``."""
        if size <= len(self.images):
            return self.images[:size]
        rest, _ = self.test.take(torch.arange(size - len(self.images)) % len(self.test))
        return torch.cat([self.images, rest])

    def _ordered(self) -> bool:
        order = torch.randperm(len(self.images), generator=_generator()).to(self.images.device)
        [straight] = self._ask([self.images], None)
        [shuffled] = self._ask([self.images[order]], None)
        back = order.argsort()
        return self._differ(straight, Answers(shuffled.clean[back], shuffled.released[:, back]))

    def _repeated(self) -> bool:
        first, again = self._ask([self.images, self.images], None)
        return self._differ(first, again)

    def _personal(self, *accounts: str) -> bool:
        """Whether accounts, with no history that could explain it, are answered otherwise than a newcomer."""
        [newcomer] = self._ask([self.images], None)
        return any(self._differ(newcomer, *self._ask([self.images], account)) for account in accounts)

    def _new(self) -> tuple[str, ...]:
        """The accounts without such a history at the end: the attack's has one where each account has its own."""
        return (self.visitor,) if self._remembers else (self.visitor, self.attacker)

    def _singled_out(self, sample: Sample) -> bool:
        if len(sample.images) == 0:
            return False
        return self._differ(Answers(sample.clean, sample.released[None]), self._newcomers(sample.images))

    def _recognized(self) -> bool:
        """Test images, or their shifted copies, are answered better than others that nobody could tell from them."""
        exact, _ = self.test.take(_some(self.test, COPIED_IMAGES))
        usual, own = (_whole(shifted(self.test, seed=seed, count=COPIED_IMAGES)) for seed in (_SEED, self.secret))
        for known, copies in ((exact, changed(exact, seed=self.secret)), (usual, own)):
            if beyond_chance(_damage(self._newcomers(copies)) - _damage(self._newcomers(known))):
                return True
        return False

    def _newcomers(self, images: Tensor) -> Answers:
        """The answers to images that as many newcomers ask about as it takes for none to ask about many.

        A detector that takes one of them for an attack refuses all of its images at once, which is no sign of anything.
        """
        return _joined(self._ask(list(torch.split(images, PROBES)), None))

    @property
    def _remembers(self) -> bool:
        """Whether the defense may hold against an account what it asked before."""
        return self._traits.stateful and "account" in self._traits.needs

    def _goes_on(self, asked: int) -> HonestAccount:
        """An honest account that asks as much as the attack.

        It asks about each image once, those of the test first, and some of these in the end: whoever repeats images is
        easily taken for an attack.
        """
        account, limit, honest, flagged = f"{self.secret:016x}", min(asked, HONEST_QUERIES), 0, None
        gaps = []
        natural, rest = self.images[::2], _order(self.test)[PROBES:]
        with without_trace(self.deployment):
            for images, _ in chain(self.test.batches(256, order=rest), self.more().batches(256)):
                if honest == limit:
                    break
                part = images[: limit - honest]
                [newcomer] = self._ask([part], None)
                gaps.append(_damage(self._answers(part, account, 1)) - _damage(newcomer))
                verdict = self.deployment.verdict()
                if flagged is None and verdict is not None and verdict.flagged.any():
                    flagged = honest + 1 + int(verdict.flagged.long().argmax())
                honest += len(part)
            after = self._answers(natural, account, 1)
        [newcomer] = self._ask([natural], None)
        gap = torch.cat(gaps)
        suffered = beyond_chance(gap) if self._traits.stochastic else bool(gap.mean() > MATERIAL)
        return HonestAccount(asked=honest, tired=suffered or self._differ(newcomer, after), flagged=flagged)

    # -------------------------------------------------------------------------------- asking and comparing

    def _ask(self, batches: list[Tensor], account: str | None) -> list[Answers]:
        """What one customer is answered who asks about these batches in turn; all begin where the attack stands."""
        repeats = REPEATS if self._traits.stochastic and not self._traits.stateful else 1
        with without_trace(self.deployment):
            return [self._answers(batch, account, repeats) for batch in batches]

    def _answers(self, images: Tensor, account: str | None, repeats: int) -> Answers:
        pairs = [self.deployment.answer(images, account) for _ in range(repeats)]
        return Answers(pairs[0][0], torch.stack([released for _, released in pairs]))

    def _differ(self, first: Answers, second: Answers) -> bool:
        """Whether answers to the same images differ by more than rounding and, if declared, chance."""
        if self._traits.stochastic:
            gap = _damage(first) - _damage(second)
            return beyond_chance(gap) or beyond_chance(-gap)
        apart = (first.released - second.released).abs().sum(dim=-1).mean(dim=0)
        rounding = (first.clean - second.clean).abs().sum(dim=-1).mean()
        # The largest is left out: one answer may sit where a defense decides between two.
        rest = apart.sum() - apart.max() if len(apart) > 1 else apart.sum()
        return bool(rest / len(apart) > MATERIAL + ROUNDING * rounding)

    # ---------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What was answered before the attack, to whom otherwise, and whether answers have changed since."""
        return snapshot(self, skip=("deployment", "test", "more", "attacker", "visitor", "secret", "images"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        restore(self, state)


@contextmanager
def without_trace(deployment: Deployment) -> Iterator[None]:
    """Whatever is asked within this scope: the defense's state and the random numbers to come are as before."""
    defense, device = deployment.defense, deployment.target.mean.device
    state = defense.state_dict()
    kept = [(link, set(vars(link))) for link in (defense.links if isinstance(defense, Chain) else [defense])]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            defense.load_state_dict(state)
            for link, names in kept:
                for late in vars(link).keys() - names:  # begun within this scope, and no part of the state before
                    delattr(link, late)


def _joined(parts: list[Answers]) -> Answers:
    """Answers about the images of all parts."""
    clean, released = (torch.cat(each, dim=-2) for each in zip(*parts, strict=True))
    return Answers(clean, released)


def _first(*answers: Answers) -> list[Answers]:
    """As many of each as there are of the fewest."""
    count = min(len(each.clean) for each in answers)
    return [Answers(each.clean[:count], each.released[:, :count]) for each in answers]


def _late(detection: Detection | None, acted: int, honest: HonestAccount) -> bool:
    """Whether nobody knows what honest accounts pay that ask as much as the attack did until it was noticed.

    What a defense says of that counts where it does not say the same of an honest account, and sooner; else when the
    attack's account was first seen to be answered otherwise, which is at a milestone.

    Args:
        acted: queries that the attack had made by then; 0 if it never was.
    """
    said = detection.first_flagged if detection else None
    if said is not None and (honest.flagged is None or said < honest.flagged):
        return said > honest.asked
    return acted > honest.asked


def _damage(answers: Answers) -> Tensor:
    """Mean L1 distance (N,) of what was released for each image from the clean answer."""
    return (answers.released - answers.clean).abs().sum(dim=-1).mean(dim=0)


def beyond_chance(gap: Tensor) -> bool:
    """Whether the mean of paired differences (N,) is above zero by more than chance, and matters."""
    error = gap.std() / len(gap) ** 0.5 if len(gap) > 1 else gap.new_tensor(0.0)
    return bool(gap.mean() > MATERIAL + STANDARD_ERRORS * error)


# ---------------------------------------------------------------------------------------------------- images


def _generator(seed: int = _SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _whole(images: TensorImages) -> Tensor:
    """All of them, (N, C, H, W)."""
    return images.take(torch.arange(len(images)))[0]


def _order(images: Images) -> Tensor:
    """Indices of all images, in an order drawn at random once and for all."""
    return torch.randperm(len(images), generator=_generator())


def _some(images: Images, count: int) -> Tensor:
    """Indices of at most ``count`` images, the first in that order."""
    return _order(images)[:count]


def _probes(test: Images) -> Tensor:
    """Test images and images of uniform noise in turn."""
    natural, _ = test.take(_some(test, PROBES))
    noise = torch.rand(natural.shape, generator=_generator()).to(natural.device)
    return torch.stack([natural, noise], dim=1).flatten(0, 1)


def changed(images: Tensor, *, seed: int) -> Tensor:
    """Copies of images (N, C, H, W) in [0, 1] with every pixel one of 255 gray levels up or down."""
    up = torch.randint(2, images.shape, generator=_generator(seed)).to(images.device) * 2 - 1
    step = torch.where((images + up / 255 > 1) | (images + up / 255 < 0), -up, up)
    return images + step / 255


def shifted(test: Images, *, seed: int = _SEED, count: int = SHIFTED_IMAGES) -> TensorImages:
    """A copy of the test set, or of ``count`` of its images, that is a little off.

    Every image is moved by up to a sixteenth of its size in each direction, its contrast lowered by up to a third,
    and Gaussian noise of standard deviation 0.05 added; it is then clipped to [0, 1] and rounded to 8 bits.
    """
    generator = _generator(seed)
    parts = [
        (_off(images, generator).mul(255).round().byte(), labels)
        for images, labels in test.batches(256, order=_some(test, count))
    ]
    pixels, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return TensorImages(pixels, labels, device=labels.device)


def _off(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) moved, pale and noisy, clipped to [0, 1]."""
    draw = partial(torch.rand, generator=generator)
    count = len(images)
    affine = torch.eye(2, 3).repeat(count, 1, 1)
    affine[:, :, 2] = (2 * draw(count, 2) - 1) / 8  # the grid runs from -1 to 1: an eighth is a sixteenth of the size
    contrast = 1 - draw(count, 1, 1, 1) / 3
    noise = 0.05 * torch.randn(images.shape, generator=generator)
    grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + contrast.to(images.device) * (moved - mean) + noise.to(images.device)).clamp(0, 1)
