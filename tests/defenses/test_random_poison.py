"""Random poisoning: its formula, its distance, and that classes are drawn evenly."""

from collections.abc import Callable

import pytest
import torch
from msbench.defenses.base import DefenseContext
from msbench.defenses.random_poison import RandomPoison
from scipy import stats
from torch import Tensor

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("epsilon", [0.1, 0.9, 2.0])
def test_leans_towards_one_other_class(
    num_classes: int, epsilon: float, context: Make, answers: Draw, images: Draw
) -> None:
    poison = RandomPoison(epsilon=epsilon)
    poison.prepare(context(num_classes))
    clean = answers(200, num_classes).double()
    added = poison.release(clean.float(), images(200)).double() - (1 - epsilon / 2) * clean
    mass, drawn = added.max(dim=1)
    torch.testing.assert_close(mass, torch.full_like(mass, epsilon / 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(added.abs().sum(dim=1), mass, rtol=0, atol=1e-6)
    assert (drawn != clean.argmax(dim=1)).all()
    distance = (added - epsilon / 2 * clean).abs().sum(dim=1)
    expected = epsilon * (1 - clean.gather(1, drawn[:, None]).squeeze(1))
    torch.testing.assert_close(distance, expected, rtol=0, atol=1e-6)


def test_all_other_classes_are_drawn_alike(context: Make, images: Draw) -> None:
    poison = RandomPoison(epsilon=2.0)
    poison.prepare(context(5))
    probs = torch.tensor([0.1, 0.1, 0.6, 0.1, 0.1]).expand(4000, -1)
    counts = poison.release(probs, images(4000)).argmax(dim=1).bincount(minlength=5)
    assert counts[2] == 0
    assert stats.chisquare(counts[[0, 1, 3, 4]].numpy()).pvalue > 1e-3


def test_state_continues_the_draws(context: Make, answers: Draw, images: Draw) -> None:
    first, second = RandomPoison(), RandomPoison()
    for poison in (first, second):
        poison.prepare(context())
    probs, asked = answers(20), images(20)
    before = first.release(probs, asked)
    second.load_state_dict(first.state_dict())
    after = first.release(probs, asked)
    assert not torch.equal(before, after)
    assert torch.equal(after, second.release(probs, asked))


def test_repeated_answers_give_the_clean_one_away(context: Make, answers: Draw, images: Draw) -> None:
    poison = RandomPoison()
    poison.prepare(context())
    clean, asked = answers(20), images(20)
    smallest = torch.stack([poison.release(clean, asked) for _ in range(30)]).amin(dim=0)
    torch.testing.assert_close(smallest / smallest.sum(dim=1, keepdim=True), clean)


@pytest.mark.parametrize(("lead", "kept"), [(0.07, False), (0.11, True)])
def test_the_mean_reverses_small_leads_until_the_poison_is_taken_out(lead: float, kept: bool, context: Make) -> None:
    """The bound is 0.45 / 9 / 0.55 = 0.0909."""
    poison = RandomPoison()
    poison.prepare(context())
    clean = torch.full((10,), 0.05)
    clean[3] = 0.3 - lead / 2
    clean[6] = 0.3 + lead / 2
    mean = poison.release(clean.expand(20_000, -1), torch.zeros(20_000, 1, 6, 6)).mean(dim=0)
    assert (int(mean.argmax()) == 6) is kept
    share = torch.full((10,), 0.45 / 9)
    share[6] = 0
    torch.testing.assert_close((mean - share) / 0.55, clean, rtol=0, atol=0.01)
