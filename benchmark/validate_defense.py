"""The contract suite of defenses: what ``msbench validate defense`` runs, and what every built-in passes.

It checks what `Traits` declares and what `Defense` promises, on made-up answers of 2 to 1000 classes and on
small random images. A defense that keeps more than it declares (the top class although it declares
``argmax_preserving=False``, say) is not faulted; one that declares more than it keeps is. Answers of a
stochastic defense are compared by their means over repeats, with a margin of six standard errors, and
where a state forbids repeats, by how far they are from the target's on average. What
cannot be seen from outside within a few thousand queries is not found: a defense that changes its ways after
a million, say.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from ..defenses.base import DefenseContext, Traits, load_defense
from ..defenses.deployment import Deployment
from ..errors import BadParameter, UsageError
from ..targets.target import Target
from ..targets.training import Recipe
from .checks import IMAGE_SHAPE, Broken, Check, attempt, in_words, stored, tiny_images, tiny_network
from .reliability import beyond_chance
from .traffic import account_name

CLASSES = (10, 2, 43, 100, 1000)
"""Numbers of classes K to try; the first that the defense accepts is used where one is enough."""

_RECIPE = Recipe(epochs=2, batch=32, lr=1e-3, weight_decay=0)
"""How long a defense trains that trains as its target was: eight steps."""
_CLEAR_LEAD = 1e-3
"""The lead from which the top class counts as unique: float32 rounding cannot overturn it."""
_REPEATS = 32
"""Answers of a stochastic defense that are averaged."""
_TOLERANCE = 1e-6
"""How far apart answers may be that should be equal: batches of other sizes round differently."""
_CUSTOMER, _OTHER = (account_name("contract suite", who) for who in ("customer", "another"))
"""The accounts that ask; a name tells a defense nothing."""


Questions = tuple[Tensor, Tensor]
"""The target's answers (N, K) and the images (N, 1, 8, 8) that they are about."""


@dataclass(frozen=True)
class Subject:
    """The defense under test, built afresh for every use."""

    spec: str
    classes: tuple[int, ...]
    """The numbers of classes that it accepts."""

    @property
    def traits(self) -> Traits:
        """What it declares."""
        return load_defense(self.spec).traits

    def fresh(self, num_classes: int | None = None) -> Deployment:
        """A new instance in front of the target, prepared with the same seed each time."""
        return _deployed(self.spec, num_classes or self.classes[0])

    def questions(self, count: int, *, seed: int = 0) -> Questions:
        """Generic answers about random images."""
        generator = torch.Generator().manual_seed(seed)
        return _generic(count, self.classes[0], generator), torch.rand(count, *IMAGE_SHAPE, generator=generator)


def validate_defense(spec: str) -> list[Check]:
    """Run the contract suite on the defense, or chain of defenses, that a spec describes.

    A defense that cannot be built or prepared gets that failed check last. Raises `UsageError` for an unknown
    name or parameter, as `load_defense` does; nothing that the defense itself raises gets out.
    """
    accepted: list[int] = []
    checks = [attempt("loads", lambda: _loads(spec), passing=(UsageError,))]
    if checks[-1].passed:
        checks.append(attempt("prepares", lambda: _prepares(spec, accepted)))
    if checks[-1].passed:
        subject = Subject(spec, tuple(accepted))
        checks += [attempt(name, partial(check, subject)) for name, check in _CHECKS.items()]
    return checks


# ------------------------------------------------------------------------------------------------- building


def _loads(spec: str) -> str:
    traits = getattr(load_defense(spec), "traits", None)
    if not isinstance(traits, Traits):
        raise Broken("declares no traits: give the class an attribute traits = Traits(...)")
    return ""


def _prepares(spec: str, accepted: list[int]) -> str:
    declined = {}
    for num_classes in CLASSES:
        try:
            _deployed(spec, num_classes)
            accepted.append(num_classes)
        except BadParameter as error:
            declined[num_classes] = str(error)
    skipped = "; ".join(f"K={num_classes} skipped by declaration: {why}" for num_classes, why in declined.items())
    if not accepted:
        raise Broken(f"fits no number of classes: {skipped}")
    return skipped


def _deployed(spec: str, num_classes: int) -> Deployment:
    defense, target = load_defense(spec), _target(num_classes)
    own = copy.deepcopy(target)
    defense.prepare(
        DefenseContext(
            num_classes=num_classes,
            image_shape=IMAGE_SHAPE,
            device=torch.device("cpu"),
            seed=0,
            new_surrogate=lambda seed: tiny_network(seed, num_classes),
            target=lambda: own,
            data=lambda: tiny_images(2, num_classes),
            auxiliary=lambda _: tiny_images(3, num_classes),
            recipe=_RECIPE,
        )
    )
    return Deployment(target, defense, own)


@cache
def _target(num_classes: int) -> Target:
    network = tiny_network(1, num_classes)
    target = Target(network, mean=(0.0,), std=(1.0,), num_classes=num_classes, image_shape=IMAGE_SHAPE)
    return target.eval().requires_grad_(False)


# --------------------------------------------------------------------------------------- asking and comparing


@torch.no_grad()
def _ask(instance: Deployment, probs: Tensor, images: Tensor, account: str | None = _CUSTOMER) -> Tensor:
    """The checked answer (N, K) to the target's, or, where the defense serves another network, to that one's."""
    if instance.network is not instance.target:
        probs = instance.network(images.clone()).float().softmax(dim=1)
    return _release(instance, probs, images, account)


@torch.no_grad()
def _release(instance: Deployment, probs: Tensor, images: Tensor, account: str | None = _CUSTOMER) -> Tensor:
    """The checked answer (N, K); the defense gets copies, so that it cannot alter the questions."""
    released = instance.release(probs.clone(), images.clone(), account)
    instance.settle()
    return released


def _ask_often(
    subject: Subject, instance: Deployment, probs: Tensor, images: Tensor, account: str | None = _CUSTOMER
) -> Tensor:
    """Answers (R, N, K) to the same questions, R being 1 unless the defense is stochastic and keeps no state."""
    repeats = _REPEATS if subject.traits.stochastic and not subject.traits.stateful else 1
    return torch.stack([_ask(instance, probs, images, account) for _ in range(repeats)])


def _ask_in_turn(subject: Subject, questions: Sequence[Questions]) -> list[Tensor]:
    """The answers of one fresh instance to several batches, in that order."""
    instance = subject.fresh()
    return [_ask_often(subject, instance, *each) for each in questions]


def _singly(questions: Questions) -> list[Questions]:
    """The same questions as batches of one."""
    probs, images = questions
    return [(probs[i : i + 1], images[i : i + 1]) for i in range(len(probs))]


def _expect_equal(first: Tensor, second: Tensor, complaint: str) -> None:
    """Compare mean answers (R, N, K) up to rounding and chance."""
    variance = first.var(dim=0, correction=0) + second.var(dim=0, correction=0)
    chance = 6 * (variance / len(first)).sqrt()
    apart = (first.mean(dim=0) - second.mean(dim=0)).abs()
    if bool((apart > chance + _TOLERANCE).any()):
        raise Broken(f"{complaint} (probabilities differ by up to {apart.max():.3g})")


def _expect_as_far(probs: Tensor, first: Tensor, second: Tensor, complaint: str) -> None:
    """Compare how far answers (R, N, K) are from the target's (N, K) on average, up to chance."""
    costs = [(answers - probs).abs().sum(dim=-1).mean(dim=0) for answers in (first, second)]
    gap = costs[0] - costs[1]
    if beyond_chance(gap) or beyond_chance(-gap):
        means = " and ".join(f"{cost.mean():.3g}" for cost in costs)
        raise Broken(f"{complaint} (mean L1 distances from the target's answers are {means})")


def _generic(count: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Flat, ordinary and confident answers in turn, (N, K)."""
    scale = torch.tensor([1.0, 3.0, 10.0]).repeat(count // 3 + 1)[:count, None]
    return (scale * torch.randn(count, num_classes, generator=generator)).softmax(dim=1)


def _kinds(num_classes: int) -> dict[str, Tensor]:
    """Batches of answers (N, K) of every kind that a target can give."""
    one_hot = F.one_hot(torch.arange(num_classes)[:: max(1, num_classes // 8)], num_classes).float()
    every_other = (torch.arange(num_classes) % 2 == 0).float()[None]
    return {
        "random": _generic(48, num_classes, torch.Generator().manual_seed(num_classes)),
        "one-hot": one_hot,
        "nearly one-hot": 0.999999 * one_hot + 0.000001 / num_classes,
        "tied": torch.cat([(one_hot + one_hot.roll(1, dims=1)) / 2, every_other / every_other.sum()]),
        "uniform": torch.full((3, num_classes), 1 / num_classes),
    }


def _every_answer(subject: Subject) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What was asked in words, the target's answers (N, K), and what a fresh instance makes of them."""
    for num_classes in subject.classes:
        instance = subject.fresh(num_classes)
        for kind, probs in _kinds(num_classes).items():
            images = torch.rand(len(probs), *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1))
            asked = f"{kind} answers of {num_classes} classes"
            try:
                released = _release(instance, probs, images)
            except Exception as error:  # say what was asked, whatever went wrong
                raise Broken(f"{in_words(error)} (given {asked})") from error
            yield asked, probs, released


# ------------------------------------------------------------------------------------------------- the checks


def _probabilities(subject: Subject) -> str:
    asked = [asked for asked, _, _ in _every_answer(subject)]  # each answer is checked as it is given
    return f"{len(asked)} kinds of answers"


def _batch_sizes(subject: Subject) -> str:
    for size in (1, 4096):
        _ask(subject.fresh(), *subject.questions(size))
    return "1 and 4096 images"


def _inputs(subject: Subject) -> str:
    probs, images = subject.questions(64)
    given = probs.clone(), images.clone()
    defense = subject.fresh().defense
    defense.attend(None)
    with torch.no_grad():
        released = defense.release(*given)
    if not released.is_floating_point():
        raise Broken(f"released {released.dtype} where floating point is due")
    if not (torch.equal(given[0], probs) and torch.equal(given[1], images)):
        raise Broken("modified its inputs in place: work on a copy")
    return ""


def _argmax(subject: Subject) -> str:
    if not subject.traits.argmax_preserving:
        return "declared not to preserve it"
    deployed, (_, images) = subject.fresh(), subject.questions(256)
    served = ("answers that the target gave", *deployed.answer(images, _CUSTOMER))  # a network may stand in its place
    for asked, probs, released in chain(_every_answer(subject), [served]):
        best, second = probs.topk(2, dim=1).values.unbind(dim=1)
        changed = (best - second > _CLEAR_LEAD) & (released.argmax(dim=1) != probs.argmax(dim=1))
        if bool(changed.any()):
            raise Broken(
                f"the top class changed in {int(changed.sum())} of {len(probs)} {asked}: "
                "keep it or declare argmax_preserving=False"
            )
    return ""


def _labels_only(subject: Subject) -> str:
    if not subject.traits.labels_only:
        return "declared to release more than labels"
    for asked, _, released in _every_answer(subject):
        if not bool(((released == 0) | (released == 1)).all()):
            raise Broken(f"answers are not one-hot, given {asked}: declare labels_only=False")
    return ""


def _determinism(subject: Subject) -> str:
    traits = subject.traits
    if traits.stateful:
        return "declared stateful: asking twice may give two answers"
    instance, questions = subject.fresh(), subject.questions(256)
    equal = torch.equal(_ask(instance, *questions), _ask(instance, *questions))
    if traits.stochastic and equal:
        raise Broken("asked twice, it answered 256 images alike: declare stochastic=False")
    if not traits.stochastic and not equal:
        raise Broken("asked twice, it gave two answers: declare stochastic=True (or stateful=True)")
    return ""


def _batch_composition(subject: Subject) -> str:
    if subject.traits.stateful:
        return "declared stateful: answers may depend on the queries before"
    probs, images = subject.questions(64)
    [together] = _ask_in_turn(subject, [(probs, images)])
    alone = _ask_in_turn(subject, _singly((probs[:8], images[:8])))
    _expect_equal(together[:, :8], torch.cat(alone, dim=1), "the same image is answered otherwise alone than among 64")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    [shuffled] = _ask_in_turn(subject, [(probs[order], images[order])])
    _expect_equal(together[:, order], shuffled, "the same image is answered otherwise in a shuffled batch")
    return ""


def _history(subject: Subject) -> str:
    if subject.traits.stateful:
        return "declared stateful: answers may depend on the queries before"
    complaint = "the same image is answered otherwise {}: declare stateful=True"
    batches = [subject.questions(8, seed=seed) for seed in range(4)]
    forwards, backwards = _ask_in_turn(subject, batches), _ask_in_turn(subject, batches[::-1])
    _expect_equal(torch.cat(forwards, dim=1), torch.cat(backwards[::-1], dim=1), complaint.format("in another order"))
    used = subject.fresh()
    for question in _singly(subject.questions(1024, seed=100)):
        _ask(used, *question)
    after = _ask_often(subject, used, *batches[0])
    _expect_equal(forwards[0], after, complaint.format("after 1,024 other queries"))
    return ""


def _accounts(subject: Subject) -> str:
    traits, questions = subject.traits, subject.questions(64)
    by_chance = traits.stateful and traits.stochastic
    expect = partial(_expect_as_far, questions[0]) if by_chance else _expect_equal
    newcomer = _ask_often(subject, subject.fresh(), *questions, account=None)
    named = _ask_often(subject, subject.fresh(), *questions)
    expect(newcomer, named, "it tells users by name: one without an account is answered otherwise than one who begins")
    if not traits.stateful:
        return ""
    shared = subject.fresh()
    if shared.defense.shares_state():
        return "declared to keep one state for all accounts"
    for seed in range(1, 5):
        _ask(shared, *subject.questions(256, seed=seed), account=_OTHER)
        _ask(shared, *subject.questions(256, seed=seed + 4), account=None)
    after_others = _ask_often(subject, shared, *questions)
    expect(
        named,
        after_others,
        "an account is answered otherwise after what others asked: do not declare that it needs account",
    )
    return ""


def _verdict(subject: Subject) -> str:
    instance, questions = subject.fresh(), subject.questions(64)
    released = _ask(instance, *questions)
    verdict = instance.verdict()
    if verdict is None:
        return "it detects nothing"
    for rows in (verdict.flagged, verdict.refused):
        if rows.dtype != torch.bool or tuple(rows.shape) != (64,):
            raise Broken(f"its verdict on 64 queries is {rows.dtype} of shape {tuple(rows.shape)}, not bool (64,)")
    answered = released[verdict.refused] - 1 / released.shape[1]
    if bool((answered.abs() > _TOLERANCE).any()):
        raise Broken("a query that it calls refused was answered: release a uniform vector in its place")
    return f"{int(verdict.flagged.sum())} of 64 flagged"


def _state(subject: Subject) -> str:
    first, second = subject.fresh(), subject.fresh()
    _ask(first, *subject.questions(64))
    second.defense.load_state_dict(stored(first.defense.state_dict()))
    for seed in (1, 2):
        questions = subject.questions(64, seed=seed)
        if not torch.equal(_ask(first, *questions), _ask(second, *questions)):
            raise Broken("restored from its saved state, it does not continue with the same answers")
    return ""


def _seed(subject: Subject) -> str:
    first, second = subject.fresh(), subject.fresh()
    for seed in (0, 1):
        questions = subject.questions(64, seed=seed)
        if not torch.equal(_ask(first, *questions), _ask(second, *questions)):
            raise Broken("two instances of one seed answer differently: draw from context.generator() only")
    return ""


def _global_random_state(subject: Subject) -> str:
    before = torch.get_rng_state()
    _ask(subject.fresh(), *subject.questions(64))
    if not torch.equal(before, torch.get_rng_state()):
        raise Broken("it draws from torch's global random state: draw from context.generator() only")
    return ""


_CHECKS: dict[str, Callable[[Subject], str]] = {
    "probabilities": _probabilities,
    "batch sizes": _batch_sizes,
    "inputs": _inputs,
    "argmax": _argmax,
    "labels only": _labels_only,
    "determinism": _determinism,
    "batch composition": _batch_composition,
    "history": _history,
    "accounts": _accounts,
    "verdict": _verdict,
    "state": _state,
    "seed": _seed,
    "global random state": _global_random_state,
}
