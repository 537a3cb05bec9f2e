"""Whether a defense does what it declares: the questions that tell a benchmark from its users.

A defense looks good by cheating if it answers the harness's questions otherwise than its users', or the attack
otherwise than either. So the same images are asked about as a newcomer, as another customer and under the attack's own
account; alone, among others, in another order and again; before the attack, at its milestones and after it. A sample
of the attack's own queries is asked about once more by a newcomer. Test images are compared with copies that nobody
could tell from them, and the accuracy on the test set with that on a shifted copy of it.

What a defense declares in its `Traits` it may do: answers of a stochastic one are compared by how far they are from the
clean ones on average, and what depends on earlier queries is compared only where the traits leave no room for that, as
before the attack, when its account is new to everybody. Whatever is asked here is charged to nobody, and leaves no
trace in the defense.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..defenses.base import Traits
from ..defenses.deployment import Deployment
from ..leaderboard.record import Paid
from ..targets.datasets.base import Images, TensorImages
from ..targets.persistence import restore, snapshot
from .traffic import Sample

PROBES = 32
"""Test images, and as many images of noise, that are asked about in every way."""
ALONE = 32
"""The first so many of them are asked about one by one."""
REPEATS = 4
"""Answers of a stochastic defense that are averaged."""
CHANGED_IMAGES = 256
"""Test images that are compared with copies changed by one gray level."""
SHIFTED_IMAGES = 1000
"""Test images whose shifted copies are asked about."""

MATERIAL = 0.02
"""Mean L1 distance between answers that is too much where they should be equal, beyond rounding and chance."""
ROUNDING = 20.0
"""How many times the bare target's own differences count as rounding: defenses may enlarge them."""
STANDARD_ERRORS = 6.0
"""What counts as chance."""
DRIFT = 0.01
"""Change of the defended accuracy that is too much, beyond chance."""
SHIFT_COST = 0.2
"""Accuracy lost on the shifted copy beyond that lost on the test set that is too much."""

_SEED = 20_261
"""Which images, copies and shifts: the same in every run."""

REPEATED = "answers the same batch otherwise when asked again, which it does not declare"
BATCHED = "answers the same image otherwise alone than in a batch"
ORDERED = "answers depend on the order of the batch, which it does not declare"
PERSONAL = "answers depend on who asks, which it does not declare"
SINGLED_OUT = "answered the attack otherwise than it answers a newcomer who asks the same"
DRIFTED = "answers to the same images changed during the attack, which it does not declare"
RECOGNIZED = "test images are answered better than copies of them changed by one gray level"
FRAGILE = "costs far more accuracy on a shifted copy of the test set than on the test set"
MOVED = "defended accuracy moved during the attack"
DISTORTED = "declares to preserve the top class, but changed it for test images"


class Answers(NamedTuple):
    """Answers to the same N images."""

    clean: Tensor
    """The bare target's, (N, K)."""
    released: Tensor
    """What was released each time that they were asked about, (R, N, K)."""


class Reliability:
    """Asks a deployment the same things in many ways, and remembers what it answered before the attack.

    Args:
        deployment: target and defense as attackers and users meet them.
        test: the target's held-out images.
        attacker: the account that the attack asks under.
        visitor: the account of a customer who is not the attack.
    """

    def __init__(self, deployment: Deployment, test: Images, *, attacker: str, visitor: str) -> None:
        self.deployment = deployment
        self.test = test
        self.attacker = attacker
        self.visitor = visitor
        self.images = _probes(test)
        self.early: list[Tensor] = []
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

    def look(self) -> None:
        """Ask as a newcomer: the first time to remember the answers, from then on to compare with them.

        A defense that declares one state for all customers may change its answers, and is not asked.
        """
        if self.deployment.defense.shares_state():
            return
        [now] = self._ask([self.images], None)
        if self.early:
            self.drifted |= self._differ(Answers(*self.early), now)
        else:
            self.early = list(now)

    # ------------------------------------------------------------------------------------------- judging

    def flags(self, sample: Sample, paid: Paid, accuracy: float) -> list[str]:
        """What a reader should know before trusting the numbers, in sentences that do not depend on the numbers.

        Args:
            sample: some of the attack's queries, and what they were answered.
            paid: what an honest user paid.
            accuracy: the undefended target's.
        """
        self.look()
        found = {DRIFTED: self.drifted, BATCHED: self._batched(), RECOGNIZED: self._recognized()}
        found |= {PERSONAL: self.personal or self._personal(*self._new()), FRAGILE: _fragile(paid, accuracy)}
        if not self._traits.stateful:
            found |= {ORDERED: self._ordered(), SINGLED_OUT: self._singled_out(sample)}
        if not (self._traits.stateful or self._traits.stochastic):
            found[REPEATED] = self._repeated()
        found[DISTORTED] = self._traits.argmax_preserving and paid.argmax_changed > 0
        found[MOVED] = self._moved(paid)
        return sorted(flag for flag, holds in found.items() if holds)

    def _batched(self) -> bool:
        """One customer's batch is answered as if its images had come one by one; true of stateful defenses as well."""
        [together] = self._ask([self.images], self.visitor)
        alone = self._ask(list(torch.split(self.images[:ALONE], 1)), self.visitor)
        clean, released = zip(*alone, strict=True)
        first = Answers(together.clean[:ALONE], together.released[:, :ALONE])
        return self._differ(first, Answers(torch.cat(clean), torch.cat(released, dim=1)))

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
        with_history = self._traits.stateful and "account" in self._traits.needs
        return (self.visitor,) if with_history else (self.visitor, self.attacker)

    def _singled_out(self, sample: Sample) -> bool:
        if len(sample.images) == 0:
            return False
        parts = self._ask(list(torch.split(sample.images, PROBES)), None)
        clean, released = (torch.cat(each, dim=-2) for each in zip(*parts, strict=True))
        return self._differ(Answers(sample.clean, sample.released[None]), Answers(clean, released))

    def _recognized(self) -> bool:
        exact, _ = self.test.take(_some(self.test, CHANGED_IMAGES))
        [known] = self._ask([exact], None)
        [copies] = self._ask([changed(exact)], None)
        return beyond_chance(_damage(copies) - _damage(known))

    def _moved(self, paid: Paid) -> bool:
        before, after = paid.defended_accuracy_before, paid.defended_accuracy
        spread = (before * (1 - before) + after * (1 - after)) / len(self.test)
        chance = STANDARD_ERRORS * spread**0.5 if self._traits.stochastic else 0.0
        return abs(after - before) > DRIFT + chance

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
        return snapshot(self, skip=("deployment", "test", "attacker", "visitor", "images"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        restore(self, state)


@contextmanager
def without_trace(deployment: Deployment) -> Iterator[None]:
    """Whatever is asked within this scope: the defense's state and the random numbers to come are as before."""
    state, device = deployment.defense.state_dict(), deployment.target.mean.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            deployment.defense.load_state_dict(state)


def _damage(answers: Answers) -> Tensor:
    """Mean L1 distance (N,) of what was released for each image from the clean answer."""
    return (answers.released - answers.clean).abs().sum(dim=-1).mean(dim=0)


def beyond_chance(gap: Tensor) -> bool:
    """Whether the mean of paired differences (N,) is above zero by more than chance, and matters."""
    error = gap.std() / len(gap) ** 0.5 if len(gap) > 1 else gap.new_tensor(0.0)
    return bool(gap.mean() > MATERIAL + STANDARD_ERRORS * error)


def _fragile(paid: Paid, accuracy: float) -> bool:
    if paid.shifted is None:
        return False
    known, unknown = accuracy - paid.defended_accuracy, paid.shifted.undefended - paid.shifted.defended
    return unknown - known > SHIFT_COST


# ---------------------------------------------------------------------------------------------------- images


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _some(images: Images, count: int) -> Tensor:
    """Indices of at most ``count`` images, chosen at random once and for all."""
    return torch.randperm(len(images), generator=_generator())[:count]


def _probes(test: Images) -> Tensor:
    """Test images and images of uniform noise in turn."""
    natural, _ = test.take(_some(test, PROBES))
    noise = torch.rand(natural.shape, generator=_generator()).to(natural.device)
    return torch.stack([natural, noise], dim=1).flatten(0, 1)


def changed(images: Tensor) -> Tensor:
    """Copies of images (N, C, H, W) in [0, 1] with every pixel one of 255 gray levels up or down."""
    up = torch.randint(2, images.shape, generator=_generator()).to(images.device) * 2 - 1
    step = torch.where((images + up / 255 > 1) | (images + up / 255 < 0), -up, up)
    return images + step / 255


def shifted(test: Images) -> TensorImages:
    """A copy of the test set, or of 1,000 of its images, that is a little off.

    Every image is moved by up to a sixteenth of its size in each direction, its contrast lowered by up to a third,
    and Gaussian noise of standard deviation 0.05 added; it is then clipped to [0, 1] and rounded to 8 bits.
    """
    generator = _generator()
    parts = [
        (_off(images, generator).mul(255).round().byte(), labels)
        for images, labels in test.batches(256, order=_some(test, SHIFTED_IMAGES))
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
