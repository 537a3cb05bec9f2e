"""What the questions about a defense's promises are made of, and that asking them changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from msbench.benchmark.reliability import Reliability, changed, shifted, without_trace
from msbench.benchmark.spec import RunSpec
from msbench.benchmark.traffic import Traffic
from msbench.defenses.base import Chain, Defense, Traits
from msbench.defenses.deployment import Deployment
from msbench.leaderboard.record import Record
from msbench.targets.datasets.base import TensorImages
from msbench.targets.persistence import snapshot
from msbench.targets.target import Target
from torch import Tensor, nn

SHAPE = (1, 8, 8)
Steal = Callable[..., Record]


def images(count: int = 80, seed: int = 0) -> TensorImages:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    return TensorImages(pixels, torch.arange(count) % 5)


def test_the_shifted_copy_is_moved() -> None:
    pixels = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    pixels[:, :, 8, 8] = 255
    moved = shifted(TensorImages(pixels, torch.zeros(200, dtype=torch.long)))
    places = moved.pixels.flatten(1).argmax(dim=1)
    rows, columns = (places // 16 - 8).abs(), (places % 16 - 8).abs()
    assert len(places.unique()) > 3
    assert max(int(rows.max()), int(columns.max())) == 1  # a sixteenth of the size


@dataclass(kw_only=True)
class Counting(Defense):
    """Turns answers around from its second batch on; draws from the global random state, too."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batches = torch.zeros(1)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        torch.rand(1)
        self.batches += 1
        return probs if self.batches <= 1 else probs.flip(1)


@dataclass(kw_only=True)
class CountingHonestly(Counting):
    """Says that it keeps one state for all customers."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True)


@dataclass(kw_only=True)
class OneStateEach(Defense):
    """Keeps a state for each account, it says."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=True, stateful=True, needs=("account",))

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs


def deployment(defense: Defense) -> Deployment:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)))
    return Deployment(Target(network, mean=(0.5,), std=(0.25,), num_classes=5, image_shape=SHAPE).eval(), defense)


@dataclass(kw_only=True)
class Disliking(Defense):
    """Turns answers around for one customer; declares all that could explain it."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, stochastic=True, needs=("account",))
    name: str

    def attend(self, account: str | None) -> None:
        self.disliked = account == self.name

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        return probs.flip(1) if self.disliked else probs


@dataclass(kw_only=True)
class Nervous(Defense):
    """Takes a newcomer who asks about many images for an attack if the first one's first pixel is odd."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, needs=("account",))

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        odd = (images[0].flatten()[0] * 255).round() % 2 == 1
        return torch.full_like(probs, 1 / probs.shape[1]) if odd and len(images) > 100 else probs


def questions(service: Deployment) -> Reliability:
    return Reliability(service, images(), images, attacker="attacker", visitor="visitor", secret=1)


def test_copies_differ_by_one_gray_level_in_every_pixel() -> None:
    exact, _ = images().take(torch.arange(80))
    exact[0], exact[1] = 0, 1
    levels = ((changed(exact, seed=1) - exact) * 255).round()
    assert not torch.equal(changed(exact, seed=2), changed(exact, seed=1))
    assert torch.equal(levels.abs(), torch.ones_like(levels))
    assert 0.4 < (levels[2:] > 0).float().mean() < 0.6
    assert changed(exact, seed=1).min() >= 0 and changed(exact, seed=1).max() <= 1


def test_the_shifted_copy_is_always_the_same_but_for_its_seed_and_near_the_data() -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(1200, 1, 2, 2), 8, mode="bilinear")
    test = TensorImages((smooth * 255).byte(), torch.arange(1200))
    copy = shifted(test)
    assert torch.equal(copy.pixels, shifted(test).pixels)
    assert len(copy) == len(copy.labels.unique()) == 1000  # a choice, not the first
    other = shifted(test, seed=1, count=10)
    assert torch.equal(other.labels, copy.labels[:10])
    assert not torch.equal(other.pixels, copy.pixels[:10])
    off = (copy.pixels.float() - test.pixels[copy.labels].float()).abs().mean(dim=(1, 2, 3)) / 255
    assert off.min() > 0.02 and off.max() < 0.3


def test_asking_leaves_no_trace() -> None:
    service = deployment(Counting())
    before, random = snapshot(service.defense, skip=("traits",)), torch.get_rng_state()
    with without_trace(service):
        service.answer(torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(service.defense.batches, before["batches"])  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), random)


@dataclass(kw_only=True)
class Lazy(Defense):
    """Begins to count when it is first asked."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False)

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        self.asked = getattr(self, "asked", 0) + len(images)
        return probs


def test_asking_leaves_no_trace_in_what_begins_with_the_first_question() -> None:
    for service in (deployment(Lazy()), deployment(Chain(links=[Lazy(), OneStateEach()]))):
        with without_trace(service):
            service.answer(torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1)))
        links = service.defense.links if isinstance(service.defense, Chain) else [service.defense]
        assert not hasattr(links[0], "asked")


@dataclass(kw_only=True)
class Moody(OneStateEach):
    """Refuses an account's queries from the 40th to the 60th, and is as before from then on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.counts: dict[str, int] = {}

    def attend(self, account: str | None) -> None:
        self.account = account

    def release(self, probs: Tensor, images: Tensor) -> Tensor:
        if self.account is None:
            return probs
        places = self.counts.get(self.account, 0) + torch.arange(len(images))
        self.counts[self.account] = int(places[-1]) + 1
        return torch.where(((places >= 40) & (places < 60))[:, None], torch.full_like(probs, 0.2), probs)


def test_what_an_honest_account_suffers_on_the_way_counts() -> None:
    assert questions(deployment(Moody()))._goes_on(80).tired
    assert not questions(deployment(Moody()))._goes_on(5).tired
    assert not questions(deployment(OneStateEach()))._goes_on(80).tired


def test_what_was_answered_before_the_attack_outlives_an_interruption() -> None:
    first = questions(deployment(Counting()))
    first.look()
    first.look()
    assert not first.drifted  # nobody else has asked yet
    service = deployment(Counting())
    second = questions(service)
    second.load_state_dict(first.state_dict())
    Traffic(service, "attacker").answer(images().take(torch.arange(80))[0])
    second.look()
    assert second.drifted
    third = questions(deployment(Counting()))
    third.load_state_dict(second.state_dict())
    assert third.drifted  # for good, whatever is answered from now on


@pytest.mark.parametrize(("name", "personal"), [("attacker", True), ("visitor", True), ("somebody else", False)])
def test_the_attacks_account_is_compared_with_a_newcomer_before_it_has_a_history(name: str, personal: bool) -> None:
    asked, continued = (questions(deployment(Disliking(name=name))) for _ in range(2))
    asked.begin()
    assert asked.personal == personal
    continued.load_state_dict(asked.state_dict())
    assert continued.personal == personal


def test_a_detector_that_refuses_all_of_a_newcomer_recognizes_nothing_by_that() -> None:
    """A copy's first pixel is odd where the image's is even: asked at once, all copies are refused, and no image."""
    pixels = images(300).pixels // 2 * 2
    test = TensorImages(pixels, torch.zeros(300, dtype=torch.long))
    asked = Reliability(deployment(Nervous()), test, lambda: test, attacker="a", visitor="v", secret=1)
    [copies], [known] = (asked._ask([each], None) for each in (changed(pixels / 255, seed=1), pixels / 255))
    assert (copies.released - copies.clean).abs().mean() > (known.released - known.clean).abs().mean()
    assert not asked._recognized()


@pytest.mark.parametrize("counting", [Counting(), CountingHonestly()])
def test_a_chain_drifts_unless_a_link_says_that_it_keeps_one_state_for_all(counting: Counting) -> None:
    service = deployment(Chain(links=[OneStateEach(), counting]))
    asked = questions(service)
    asked.look()
    Traffic(service, "attacker").answer(images().take(torch.arange(80))[0])
    asked.look()
    assert asked.drifted == (type(counting) is Counting)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("defense", ["noise", "modelguard_s", f"{__file__}:Counting"])
def test_a_run_without_the_questions_has_the_same_numbers(
    steal: Steal, numbers: Callable[[Record], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, defense: str
) -> None:
    spec = RunSpec(attack="random_noise:batch=40", defense=defense, budget=160)
    asked = steal(spec)
    monkeypatch.setattr(Reliability, "begin", lambda _: None)
    monkeypatch.setattr(Reliability, "look", lambda *_: None)
    monkeypatch.setattr(Reliability, "flags", lambda *_: [])
    unasked = steal(spec, force=True)
    assert asked.status == unasked.status == "done"
    assert numbers(asked) | {"flags": []} == numbers(unasked)
