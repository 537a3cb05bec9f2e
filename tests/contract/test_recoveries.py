"""Every installed recovery is a victim itself: it composes with every attack, and charges what it says."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
import torch
from msbench.attacks.base import Attack, AttackContext
from msbench.attacks.recovery.base import Recovery, RecoveryContext
from msbench.benchmark.checks import IMAGE_SHAPE, stored, tiny_network
from msbench.components import load, load_class, names
from msbench.defenses.base import DefenseContext
from msbench.defenses.rebuilt import Rebuilt, withheld
from msbench.errors import BudgetExceeded
from msbench.targets.blackbox import BlackBox
from msbench.targets.datasets.base import TensorImages
from torch import Tensor, nn

from .cheap import cheap

CHEAPER = {
    "bayes": "bayes:rows=2000",
    "ddae": "ddae:rows=200,shadows=1,epochs=1",
    "oracle_bayes": "oracle_bayes:candidates=4",
    "oracle_ddae": "oracle_ddae:updates=20",
}
SPECS = [*(CHEAPER.get(name, name) for name in names("recovery")), "averaging:repeats=3", "smoothing:copies=4,shift=1"]


def rebuild(spec: str, seed: int) -> Rebuilt:
    context = DefenseContext(
        num_classes=10,
        image_shape=IMAGE_SHAPE,
        device=torch.device("cpu"),
        seed=seed,
        new_surrogate=lambda seed: tiny_network(seed, 10).eval(),
        target=withheld,
        data=withheld,
        auxiliary=withheld,
    )
    return Rebuilt(spec, context)


def wrapped(
    spec: str, *, budget: int, defense: str = "none", clone: Callable[[], nn.Module] | None = None
) -> tuple[Recovery, BlackBox]:
    network = tiny_network(1234, 10).eval().requires_grad_(False)
    deployed = rebuild(defense, 0)

    def clean(images: Tensor) -> Tensor:
        answers: Tensor = (10 * network(images)).softmax(dim=1)
        return answers

    def answer(images: Tensor) -> Tensor:
        return deployed.release(clean(images), images)

    victim = BlackBox(
        answer,
        budget=budget,
        num_classes=10,
        image_shape=IMAGE_SHAPE,
        labels_only=deployed.defense.traits.labels_only,
    )
    recovery = cast(Recovery, load("recovery", spec)).wrap(victim)
    recovery.prepare(
        RecoveryContext(
            device=torch.device("cpu"),
            seed=0,
            build_clone=lambda seed: tiny_network(seed, 10),
            rebuild_defense=partial(rebuild, defense),
            clone=clone or (lambda: tiny_network(5, 10).eval()),
            clean=clean if "clean answers" in recovery.traits.knows else None,
        )
    )
    assert victim.spent == 0
    return recovery, victim


def images(count: int) -> Tensor:
    return torch.rand(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(3))


def set_up(attack: str, seen: Recovery) -> Attack:
    built = cast(Attack, load_class("attack", attack).from_params(cheap(attack, batch=8)))
    pixels = torch.randint(256, (200, *IMAGE_SHAPE), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    context = AttackContext(
        device=torch.device("cpu"),
        seed=0,
        precision=torch.float32,
        build_clone=lambda seed: seen.student(tiny_network(seed, 10), seed),
        pool=TensorImages(pixels, torch.zeros(200, dtype=torch.long)),
    )
    built.setup(seen, context)
    return built


DEFENSES = [
    "none",
    "label_only",
    "noise+label_only",
    "topk:k=3",
    "rounding:decimals=1",
    "temperature:temperature=4",
    "noise",
    "reverse_sigmoid",
    "mad",
]


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("spec", SPECS)
def test_answers_are_probabilities(spec: str, defense: str) -> None:
    seen, _ = wrapped(spec, budget=1000, defense=defense)
    answers = seen.query(images(20))
    assert answers.shape == (20, 10)
    assert answers.dtype == torch.float32
    assert bool((answers >= 0).all())
    torch.testing.assert_close(answers.sum(dim=1), torch.ones(20))
    if seen.labels_only:
        assert bool((answers.amax(dim=1) == 1).all())


@pytest.mark.parametrize("spec", SPECS)
def test_each_image_is_charged_as_declared(spec: str) -> None:
    seen, victim = wrapped(spec, budget=1000)
    price = seen.queries_per_image
    for count in (1, 7, 20):
        before = victim.spent
        seen.query(images(count))
        assert victim.spent - before == count * price
    assert seen.spent == 28
    assert seen.budget == 1000 // price
    assert seen.remaining == (1000 - 28 * price) // price


@pytest.mark.parametrize("spec", SPECS)
def test_a_batch_that_does_not_fit_is_refused_whole(spec: str) -> None:
    seen, victim = wrapped(spec, budget=19)
    with pytest.raises(BudgetExceeded):
        seen.query(images(seen.remaining + 1))
    assert victim.spent == 0
    seen.query(images(seen.remaining))
    assert seen.remaining == 0


@pytest.mark.parametrize("defense", ["none", "temperature:temperature=4", "topk:k=3"])
@pytest.mark.parametrize("spec", SPECS)
def test_state_round_trips(spec: str, defense: str) -> None:
    whole, box = wrapped(spec, budget=1000, defense=defense)
    whole.query(images(5))
    resumed, other = wrapped(spec, budget=1000, defense=defense)
    resumed.load_state_dict(stored(whole.state_dict()))
    other.load_state_dict(stored(box.state_dict()))
    assert torch.equal(whole.query(images(9)), resumed.query(images(9)))
    assert (whole.spent, whole.remaining) == (resumed.spent, resumed.remaining)


def every_pair() -> Iterator[Any]:
    """Recoveries and attacks: every fourth pair by default, so that each meets some of the others; the rest is slow."""
    for i, spec in enumerate(SPECS):
        for j, attack in enumerate(names("attack")):
            yield pytest.param(spec, attack, marks=[pytest.mark.slow] if (i + j) % 4 else [])


@pytest.mark.parametrize(("spec", "attack"), [*every_pair()])
def test_it_composes_with_every_attack(spec: str, attack: str) -> None:
    seen, victim = wrapped(spec, budget=100, clone=lambda: stolen.clone())
    stolen = set_up(attack, seen)
    for _ in range(200):
        report = stolen.step()
        if report.done:
            break
    assert report.done
    assert seen.remaining == 0 or report.reason
    assert victim.spent == seen.spent * seen.queries_per_image <= 100
    logits = stolen.clone()(images(3)).detach()
    assert logits.shape == (3, 10)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("spec", SPECS)
def test_the_global_random_state_is_left_alone(spec: str) -> None:
    before = torch.get_rng_state()
    seen, _ = wrapped(spec, budget=100)
    seen.query(images(5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("spec", SPECS)
def test_no_images_no_charge(spec: str) -> None:
    seen, victim = wrapped(spec, budget=100, defense="reverse_sigmoid")
    assert seen.query(images(0)).shape == (0, 10)
    assert victim.spent == 0


@pytest.mark.parametrize("name", names("recovery"))
def test_clean_answers_are_for_upper_bounds_only(name: str) -> None:
    cls = cast(type[Recovery], load_class("recovery", name))
    assert ("clean answers" in cls.traits.knows) == name.startswith("oracle_")
