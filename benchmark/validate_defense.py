"""The contract suite of defenses: what ``msbench validate defense`` runs, and what every built-in passes.

It checks what `Traits` declares and what `Defense` promises, on made-up answers of 2 to 1000 classes and on
small random images. A defense that keeps more than it declares (the top class although it declares
``argmax_preserving=False``, say) is not faulted; one that declares more than it keeps is. Answers of a
stochastic defense are compared by their means over repeats, with a margin of six standard errors, and
where a state forbids repeats, by how far they are from the target's on average. What
cannot be seen from outside within a few thousand queries is not found: a defense that changes its ways after
a million, say.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..components import format_spec, parse_spec
from ..defenses.base import Chain, Traits, load_defense
from ..defenses.deployment import Deployment
from ..errors import BadParameter, UsageError
from .checks import Broken, Check, attempt, stored
from .subject import (
    CLASSES,
    CUSTOMER,
    OTHER,
    TOLERANCE,
    Questions,
    Subject,
    ask,
    ask_in_turn,
    ask_often,
    deployed,
    every_answer,
    expect_as_far,
    expect_equal,
    singly,
)

_CLEAR_LEAD = 1e-5
"""The lead from which the top class counts as unique: float32 rounding cannot overturn it."""
_CROWD = 4096
"""The largest batch that is asked about."""
_UNMARKED = 0.25
"""The share of answers that a deterrent leaves as they are, at least: it marks a chosen few."""


def validate_defense(spec: str, device: str = "cpu") -> list[Check]:
    """Run the contract suite on the defense, or chain of defenses, that a spec describes.

    A defense that cannot be built or prepared gets that failed check last. Raises `UsageError` for an unknown
    name or parameter, as `load_defense` does; nothing that the defense itself raises gets out.
    """
    accepted: list[int] = []
    place = torch.device(device)
    checks = [attempt("loads", lambda: _loads(spec), passing=(UsageError,))]
    if checks[-1].passed:
        checks.append(attempt("prepares", lambda: _prepares(spec, accepted, place)))
    if checks[-1].passed:
        subject = Subject(spec, tuple(accepted), place)
        checks += [attempt(name, partial(check, subject)) for name, check in _CHECKS.items()]
    return checks


# ------------------------------------------------------------------------------------------------- building


def _loads(spec: str) -> str:
    traits = getattr(load_defense(spec), "traits", None)
    if not isinstance(traits, Traits):
        raise Broken("declares no traits: give the class an attribute traits = Traits(...)")
    return ""


def _prepares(spec: str, accepted: list[int], device: torch.device) -> str:
    declined = {}
    for num_classes in CLASSES:
        try:
            deployed(spec, num_classes, device)
            accepted.append(num_classes)
        except BadParameter as error:
            declined[num_classes] = str(error)
    skipped = "; ".join(f"K={num_classes} skipped by declaration: {why}" for num_classes, why in declined.items())
    if not accepted:
        raise Broken(f"fits no number of classes: {skipped}")
    return skipped


# ------------------------------------------------------------------------------------------------- the checks


def _probabilities(subject: Subject) -> str:
    asked = [asked for asked, _, _ in every_answer(subject)]  # each answer is checked as it is given
    return f"{len(asked)} kinds of answers"


def _batch_sizes(subject: Subject) -> str:
    for size in (1, _CROWD):
        ask(subject.fresh(), *subject.questions(size))
    return f"1 and {_CROWD} images"


def _vectorized(subject: Subject) -> str:
    if subject.traits.stateful or "account" in subject.traits.needs:
        return "what it makes of a query may depend on the one before it"
    few, many = 256, 1024
    counts = []
    for size in (few, many):
        instance, questions = subject.fresh(), subject.questions(size)
        with _Counter() as counter:
            ask(instance, *questions)
        counts.append(counter.calls)
    if counts[1] - counts[0] >= many - few:
        raise Broken(
            f"it works image by image: {counts[0]:,} tensor operations for {few} images, {counts[1]:,} for {many}; "
            "work on the whole batch at once"
        )
    return f"{counts[1]:,} tensor operations for {many} images"


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _precision(subject: Subject) -> str:
    _, images = subject.questions(64)
    coarse = images.bfloat16()
    plain = subject.fresh().serve(coarse.float(), CUSTOMER)
    for autocast in (False, True):
        instance = subject.fresh()
        with torch.autocast(subject.device.type, torch.bfloat16, enabled=autocast):
            served = instance.serve(coarse, CUSTOMER)
        if not torch.equal(served, plain):
            apart = (served - plain).abs().max()
            raise Broken(f"images in bfloat16 are answered otherwise than the same ones in float32 (by {apart:.3g})")
    return "float32 and bfloat16"


def _stage(subject: Subject) -> str:
    traits = subject.traits
    if traits.stage == "training" and not {"data", "logits"} & set(traits.needs):
        raise Broken("it declares stage='training', but no need of data or logits, so it trains nothing")
    if traits.stage == "training" and all(_serves_the_target(subject.fresh(k)) for k in subject.classes):
        raise Broken("it declares stage='training', and serves the target itself: return another network from deploy()")
    if traits.stage == "deterrent":
        probs, images = subject.questions(256)
        same = ((ask(subject.fresh(), probs, images) - probs).abs() <= TOLERANCE).all(dim=1)
        share = float(same.float().mean())
        if share < _UNMARKED:
            raise Broken(f"it declares stage='deterrent', and leaves only {share:.0%} of answers as they are")
    return f"ranked as {traits.stage}"


def _serves_the_target(instance: Deployment) -> bool:
    return instance.network is instance.target


def _sweep(subject: Subject) -> str:
    traits = subject.traits
    if traits.knob is None:
        if traits.sweep:
            raise Broken("it declares a sweep, but no knob that takes its values")
        return "no knob"
    name, params = parse_spec(subject.spec)
    if not traits.sweep or len(set(traits.sweep)) < len(traits.sweep):
        raise Broken(f"the sweep of its knob {traits.knob} must name values, each once: {traits.sweep}")
    for value in traits.sweep:
        load_defense(format_spec(name, params | {traits.knob: value}))  # raises for what is no parameter, or no value
    return f"{traits.knob} takes {len(traits.sweep)} values"


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
    served = ("answers that the target gave", *deployed.answer(images, CUSTOMER))  # a network may stand in its place
    for asked, probs, released in chain(every_answer(subject), [served]):
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
    for asked, _, released in every_answer(subject):
        if not bool(((released == 0) | (released == 1)).all()):
            raise Broken(f"answers are not one-hot, given {asked}: declare labels_only=False")
    return ""


def _determinism(subject: Subject) -> str:
    traits = subject.traits
    if traits.stateful:
        return "declared stateful: asking twice may give two answers"
    instance, questions = subject.fresh(), subject.questions(256)
    equal = torch.equal(ask(instance, *questions), ask(instance, *questions))
    if traits.stochastic and equal:
        raise Broken("asked twice, it answered 256 images alike: declare stochastic=False")
    if not traits.stochastic and not equal:
        raise Broken("asked twice, it gave two answers: declare stochastic=True (or stateful=True)")
    return ""


def _batch_composition(subject: Subject) -> str:
    if subject.traits.stateful:
        return _one_after_the_other(subject)
    [together, *_] = [_among(subject, 64, num_classes) for num_classes in subject.classes]
    _among(subject, _CROWD, subject.classes[0])
    probs, images = subject.questions(64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    [shuffled] = ask_in_turn(subject, [(probs[order], images[order])])
    expect_equal(together[:, order], shuffled, "the same image is answered otherwise in a shuffled batch")
    return ""


def _among(subject: Subject, size: int, num_classes: int) -> torch.Tensor:
    """The answers (R, N, K) to a batch, of which the first are those to the same images alone."""
    probs, images = subject.questions(size, num_classes)
    [together] = ask_in_turn(subject, [(probs, images)], num_classes)
    alone = ask_in_turn(subject, singly((probs[:8], images[:8])), num_classes)
    complaint = f"the same image is answered otherwise alone than among {size} (K={num_classes})"
    expect_equal(together[:, :8], torch.cat(alone, dim=1), complaint)
    return together


def _one_after_the_other(subject: Subject) -> str:
    """A state is no excuse: a batch is answered as if its images had come alone, in that order."""
    for size in (64, _CROWD):
        questions = subject.questions(size)
        [together] = ask_in_turn(subject, [questions])
        front = (questions[0][:64], questions[1][:64])
        alone = torch.cat(ask_in_turn(subject, singly(front)), dim=1)
        complaint = f"the same images in the same order are answered otherwise alone than in a batch of {size}"
        if subject.traits.stochastic:
            expect_as_far(front[0], together[:, :64], alone, complaint)
        else:
            expect_equal(together[:, :64], alone, complaint)
    return "declared stateful: answers may depend on the queries before"


def _history(subject: Subject) -> str:
    if subject.traits.stateful:
        return "declared stateful: answers may depend on the queries before"
    complaint = "the same image is answered otherwise {}: declare stateful=True"
    batches = [subject.questions(8, seed=seed) for seed in range(4)]
    forwards, backwards = ask_in_turn(subject, batches), ask_in_turn(subject, batches[::-1])
    expect_equal(torch.cat(forwards, dim=1), torch.cat(backwards[::-1], dim=1), complaint.format("in another order"))
    used = subject.fresh()
    for question in singly(subject.questions(1024, seed=100)):
        ask(used, *question)
    after = ask_often(subject, used, *batches[0])
    expect_equal(forwards[0], after, complaint.format("after 1,024 other queries"))
    return ""


def _accounts(subject: Subject) -> str:
    traits, questions = subject.traits, subject.questions(64)
    by_chance = traits.stateful and traits.stochastic
    expect = partial(expect_as_far, questions[0]) if by_chance else expect_equal
    newcomer = ask_often(subject, subject.fresh(), *questions, account=None)
    named = ask_often(subject, subject.fresh(), *questions)
    expect(newcomer, named, "it tells users by name: one without an account is answered otherwise than one who begins")
    if not traits.stateful:
        return ""
    shared = subject.fresh()
    if shared.defense.shares_state():
        return "declared to keep one state for all accounts"
    for seed in range(1, 5):
        ask(shared, *subject.questions(256, seed=seed), account=OTHER)
        ask(shared, *subject.questions(256, seed=seed + 4), account=None)
    after_others = ask_often(subject, shared, *questions)
    expect(
        named,
        after_others,
        "an account is answered otherwise after what others asked: do not declare that it needs account",
    )
    return ""


def _verdict(subject: Subject) -> str:
    instance, questions = subject.fresh(), subject.questions(64)
    released = ask(instance, *questions)
    verdict = instance.verdict()
    if verdict is None:
        return "it detects nothing"
    for rows in (verdict.flagged, verdict.refused):
        if rows.dtype != torch.bool or tuple(rows.shape) != (64,):
            raise Broken(f"its verdict on 64 queries is {rows.dtype} of shape {tuple(rows.shape)}, not bool (64,)")
    answered = released[verdict.refused] - 1 / released.shape[1]
    if not subject.traits.labels_only and bool((answered.abs() > TOLERANCE).any()):  # no label is uniform
        raise Broken("a query that it calls refused was answered: release a uniform vector in its place")
    changed = (released - questions[0]).abs().amax(dim=1) > TOLERANCE
    if not isinstance(instance.defense, Chain) and bool((changed & ~verdict.flagged).any()):
        raise Broken("a query that it does not flag was answered otherwise: a detector acts on what it flags")
    return f"{int(verdict.flagged.sum())} of 64 flagged"


def _flags(subject: Subject) -> str:
    """A verdict is on the account's queries in their order, however they come, whoever else asks, restored or not."""
    probs, images = questions = subject.suspicious()
    together = _flagged(subject.fresh(), [questions])
    if together is None:
        return "it detects nothing"
    flagged = f"{int(together.sum())} of {len(together)} flagged"
    if subject.traits.stochastic:
        return f"{flagged}; declared stochastic: not compared"
    _expect_flags(
        together, _flagged(subject.fresh(), singly(questions)), "the same queries are flagged otherwise alone"
    )
    half = len(probs) // 2
    begun, restored = subject.fresh(), subject.fresh()
    ask(begun, probs[:half], images[:half])
    restored.defense.load_state_dict(stored(begun.defense.state_dict()))
    rest = _flagged(restored, [(probs[half:], images[half:])])
    _expect_flags(together[half:], rest, "restored from its saved state, it flags other queries")
    if not begun.defense.shares_state():
        shared = subject.fresh()
        for account in (OTHER, None):
            ask(shared, probs, images, account)
        _expect_flags(together, _flagged(shared, [questions]), "what others asked changes which queries are flagged")
    return flagged


def _flagged(instance: Deployment, questions: Sequence[Questions]) -> torch.Tensor | None:
    """Which of all queries (N,) it takes for an attack's; None if it detects nothing."""
    found = []
    for probs, images in questions:
        ask(instance, probs, images)
        verdict = instance.verdict()
        if verdict is None:
            return None
        found.append(verdict.flagged)
    return torch.cat(found)


def _expect_flags(first: torch.Tensor, second: torch.Tensor | None, complaint: str) -> None:
    if second is None or not torch.equal(first, second):
        raise Broken(complaint)


def _state(subject: Subject) -> str:
    first, second = subject.fresh(), subject.fresh()
    ask(first, *subject.questions(64))
    second.defense.load_state_dict(stored(first.defense.state_dict()))
    for seed in (1, 2):
        questions = subject.questions(64, seed=seed)
        if not torch.equal(ask(first, *questions), ask(second, *questions)):
            raise Broken("restored from its saved state, it does not continue with the same answers")
    return ""


def _seed(subject: Subject) -> str:
    first, second = subject.fresh(), subject.fresh()
    for seed in (0, 1):
        questions = subject.questions(64, seed=seed)
        if not torch.equal(ask(first, *questions), ask(second, *questions)):
            raise Broken("two instances of one seed answer differently: draw from context.generator() only")
    return ""


def _global_random_state(subject: Subject) -> str:
    before = torch.get_rng_state()
    ask(subject.fresh(), *subject.questions(64))
    if not torch.equal(before, torch.get_rng_state()):
        raise Broken("it draws from torch's global random state: draw from context.generator() only")
    return ""


_CHECKS: dict[str, Callable[[Subject], str]] = {
    "probabilities": _probabilities,
    "batch sizes": _batch_sizes,
    "vectorized": _vectorized,
    "precision": _precision,
    "stage": _stage,
    "sweep": _sweep,
    "inputs": _inputs,
    "argmax": _argmax,
    "labels only": _labels_only,
    "determinism": _determinism,
    "batch composition": _batch_composition,
    "history": _history,
    "accounts": _accounts,
    "verdict": _verdict,
    "flags": _flags,
    "state": _state,
    "seed": _seed,
    "global random state": _global_random_state,
}
