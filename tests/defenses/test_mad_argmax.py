"""MAD-argmax, against the Jacobian of the official procedure over all candidates."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.defenses.base import DefenseContext
from msbench.defenses.mad_argmax import MADArgmax, _Turn, furthest_set, most_deviating_set
from torch import Tensor
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]


def candidates(answer: Tensor) -> Tensor:
    """The uniform answers (2^(K-1), K) over all sets that contain the top class."""
    num_classes = len(answer)
    codes = torch.arange(2**num_classes)
    sets = ((codes[:, None] >> torch.arange(num_classes)) & 1).double()
    sets = sets[sets[:, answer.argmax()] == 1]
    return sets / sets.sum(dim=1, keepdim=True)


def turned(uniform: Tensor, answer: Tensor, surrogate: Tensor) -> Tensor:
    """The squared distance of unit gradients (N,), a vanishing one being zero, up to the common factor."""

    def unit(v: Tensor) -> Tensor:
        return F.normalize(v, dim=-1, eps=1e-12)

    return (unit(uniform - surrogate) - unit(answer - surrogate)).square().sum(dim=-1)


def draw(seed: int, num_classes: int, spread: float, scale: float) -> tuple[Tensor, Tensor]:
    """Answers and surrogate answers (8, K), more peaked the larger ``spread`` and ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 8, num_classes, generator=generator, dtype=torch.float64)
    return (scale * logits[0]).softmax(dim=1), (spread * logits[1]).softmax(dim=1)


def attained(answers: Tensor, surrogate: Tensor) -> Tensor:
    sets = most_deviating_set(answers, surrogate)
    assert (sets.gather(1, answers.argmax(dim=1, keepdim=True)) == 1).all()
    return turned(sets / sets.sum(dim=1, keepdim=True), answers, surrogate)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    num_classes=st.integers(2, 10),
    spread=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 3.0]),
    scale=st.sampled_from([0.3, 3.0, 10.0, 100.0]),
)
def test_is_the_best_of_all_candidates(seed: int, num_classes: int, spread: float, scale: float) -> None:
    answers, surrogate = draw(seed, num_classes, spread, scale)
    best = [turned(candidates(y), y, p).max() for y, p in zip(answers, surrogate, strict=True)]
    torch.testing.assert_close(attained(answers, surrogate), torch.stack(best), rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize(("spread", "short"), [(0.0, 1e-7), (1e-2, 1e-7), (0.1, 1e-7), (1.0, 0.01), (3.0, 0.01)])
def test_the_search_is_as_good_as_enumeration(spread: float, short: float, scale: float) -> None:
    answers, surrogate = draw(7, 13, spread, scale)
    best = torch.stack([turned(candidates(y), y, p).max() for y, p in zip(answers, surrogate, strict=True)])
    assert float((best - attained(answers, surrogate)).max()) <= short


def by_all_rounds(answers: Tensor, surrogate: Tensor) -> Tensor:
    """What the search finds if it tries every move on every row, whether or not the one before helped."""
    turn = _Turn(answers, surrogate)
    chosen, best = turn.prefix(torch.zeros_like(turn.level))
    for move in [turn.another_prefix] * 3 + [turn.flip] * 8:
        found, value = move(chosen)
        chosen, best = torch.where(value < best, found, chosen), torch.minimum(value, best)
    return chosen


@pytest.mark.parametrize("num_classes", [11, 43, 100])
def test_rows_that_get_no_better_are_left_out(num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    several = [draw(seed, num_classes, 1.0, 3.0) for seed in range(8)]
    answers, surrogate = (torch.cat(parts) for parts in zip(*several, strict=True))
    expected = by_all_rounds(answers, surrogate)
    tried: list[int] = []
    flip = _Turn.flip

    def noted(turn: _Turn, chosen: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(len(chosen))
        return flip(turn, chosen)

    monkeypatch.setattr(_Turn, "flip", noted)
    assert torch.equal(most_deviating_set(answers, surrogate), expected)
    assert tried[0] == 64 > tried[1]
    assert sum(tried) < 4 * 64


def grown(answer: Tensor, surrogate: Tensor) -> float:
    """The best of the sets that the official code grows from the top class, with no limit to their number."""
    chosen = F.one_hot(answer.argmax(), len(answer)).double()
    best = float(turned(chosen, answer, surrogate))
    while chosen.sum() < len(answer):
        larger = torch.clamp(chosen + torch.eye(len(answer), dtype=torch.float64)[chosen == 0], max=1)
        values = turned(larger / larger.sum(dim=1, keepdim=True), answer, surrogate)
        chosen, best = larger[values.argmax()], max(best, float(values.max()))
    return best


@pytest.mark.parametrize("num_classes", [11, 43, 45, 100])
@pytest.mark.parametrize("spread", [1e-2, 1.0])
def test_the_search_does_what_growing_a_set_does(num_classes: int, spread: float) -> None:
    answers, surrogate = draw(3, num_classes, spread, 3.0)
    theirs = torch.tensor([grown(y, p) for y, p in zip(answers, surrogate, strict=True)], dtype=torch.float64)
    assert float((theirs - attained(answers, surrogate)).max()) <= 1e-3
    assert float((theirs - attained(answers, surrogate)).mean()) <= 1e-6


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), num_classes=st.integers(2, 10), scale=st.sampled_from([0.3, 3.0, 10.0]))
def test_the_raw_objective_is_maximal(seed: int, num_classes: int, scale: float) -> None:
    answers, _ = draw(seed, num_classes, 1.0, scale)
    sets = furthest_set(answers)
    found = (sets / sets.sum(dim=1, keepdim=True) - answers).square().sum(dim=1)
    best = torch.stack([(candidates(y) - y).square().sum(dim=1).max() for y in answers])
    torch.testing.assert_close(found, best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", ["unit", "raw"])
def test_agrees_with_the_jacobian(objective: str, context: Make, answers: Draw, images: Draw) -> None:
    mad = MADArgmax.from_params({"epsilon": 0.7, "objective": objective})
    mad.prepare(context(6))
    surrogate = copy.deepcopy(mad.surrogate).double().requires_grad_(True)
    weight = list(surrogate.parameters())[-2]
    probs, asked = answers(12, 6), images(12)
    released = mad.release(probs, asked)
    for image, clean, answer in zip(asked.double(), probs.double(), released.double(), strict=True):
        losses = -surrogate(image[None]).log_softmax(dim=1)[0]
        jacobian = torch.stack([torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten() for loss in losses])
        theirs, own = candidates(clean) @ jacobian, clean @ jacobian
        if objective == "unit":
            theirs, own = F.normalize(theirs, dim=1), F.normalize(own, dim=0)
        goal = candidates(clean)[(theirs - own).square().sum(dim=1).argmax()]
        goal[clean.argmax()] += 1e-5
        goal /= goal.sum()
        step = min(1.0, 0.7 / float((clean - goal).abs().sum()))
        torch.testing.assert_close(answer, (1 - step) * clean + step * goal, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 10, 11, 43, 45, 100, 1000])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.0])
def test_keeps_the_top_class_and_the_budget(
    num_classes: int, epsilon: float, context: Make, answers: Draw, images: Draw
) -> None:
    mad = MADArgmax(epsilon=epsilon)
    mad.prepare(context(num_classes))
    confident = F.one_hot(torch.arange(2), num_classes).float()
    probs = torch.cat([answers(60, num_classes), confident, torch.full((1, num_classes), 1 / num_classes)])
    released = mad.release(probs, images(len(probs)))
    assert torch.equal(released.argmax(dim=1), probs.argmax(dim=1))
    assert float((released.double() - probs.double()).abs().sum(dim=1).max()) <= epsilon + 1e-6


def test_vanishing_gradients_do_no_harm() -> None:
    for num_classes in (4, 20):
        answers, _ = draw(0, num_classes, 1.0, 3.0)
        assert torch.isfinite(most_deviating_set(answers, answers)).all()
        uniform = torch.full_like(answers, 1 / num_classes)
        sets = most_deviating_set(answers, uniform)
        assert (sets.sum(dim=1) < num_classes).all()  # all classes at once would be the surrogate's own answer
