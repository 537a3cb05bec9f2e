"""Knockoff Nets: which images it asks about, and what it trains for each milestone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from msbench.errors import UsageError
from torch import nn

SMALL = "knockoff:query_batch=20,epochs=2,batch=16"
Same = Callable[[nn.Module, nn.Module], bool]


def test_no_image_is_asked_about_twice_and_all_are_of_the_pool(stage: Callable[..., Any]) -> None:
    on = stage(SMALL, budget=110)
    on.run()
    pool, _ = on.attack.pool.take(torch.arange(150))
    assert len(on.images) == 110
    assert len(on.images.unique(dim=0)) == 110
    assert len(torch.cat([pool, on.images]).unique(dim=0)) == 150


def test_the_choice_is_random_and_follows_the_seed(stage: Callable[..., Any]) -> None:
    first, again, other = (stage(SMALL, budget=60, seed=seed) for seed in (0, 0, 1))
    for on in (first, again, other):
        on.run()
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    in_file_order, _ = first.attack.pool.take(torch.arange(60))
    assert len(torch.cat([first.images, in_file_order]).unique(dim=0)) > 60


def test_it_stops_with_a_reason_when_the_pool_is_used_up(stage: Callable[..., Any]) -> None:
    on = stage(SMALL, budget=1000)
    report = on.run()
    assert report.done
    assert report.reason == "the pool's 150 images are all queried"
    assert on.victim.spent == 150
    again = on.attack.step()
    assert again.done
    assert on.victim.spent == 150


@pytest.mark.parametrize("budget", [1, 149, 150])
def test_a_budget_that_the_pool_covers_needs_no_reason(stage: Callable[..., Any], budget: int) -> None:
    on = stage(SMALL, budget=budget)
    report = on.run()
    assert report.done
    assert not report.reason
    assert on.victim.remaining == 0


def test_without_a_pool_it_says_which_option_is_missing(stage: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="--pool"):
        stage(SMALL, pool_size=None)


def test_the_clone_follows_from_the_answers_so_far(stage: Callable[..., Any], same: Same) -> None:
    on = stage(SMALL)
    on.run(3)
    first = on.attack.clone()
    assert same(first, on.attack.clone())
    assert on.victim.spent == 60
    on.run(1)
    assert not same(first, on.attack.clone())


def test_each_milestone_is_trained_from_scratch(stage: Callable[..., Any], same: Same) -> None:
    watched, direct = stage(SMALL, budget=1000), stage(SMALL, budget=80)
    for _ in range(4):
        watched.attack.step()
        latest = watched.attack.clone()
    direct.run()
    assert watched.victim.spent == direct.victim.spent == 80
    assert same(latest, direct.attack.clone())


def test_the_clone_is_the_same_after_resuming(stage: Callable[..., Any], same: Same) -> None:
    whole, resumed = stage(SMALL, budget=100), stage(SMALL, budget=100)
    whole.run(2)
    resumed.attack.load_state_dict(whole.attack.state_dict())
    resumed.victim.load_state_dict(whole.victim.state_dict())
    assert same(whole.attack.clone(), resumed.attack.clone())
    whole.run()
    resumed.run()
    assert torch.equal(whole.images[40:], resumed.images)
    assert same(whole.attack.clone(), resumed.attack.clone())


def test_before_any_answer_the_clone_is_a_fresh_network(stage: Callable[..., Any], same: Same) -> None:
    on = stage(SMALL)
    assert same(on.attack.clone(), on.attack.context.new_clone("student 0"))


def test_it_fits_the_answers(stage: Callable[..., Any]) -> None:
    on = stage("knockoff:epochs=60,lr=0.05", budget=150)
    on.run()
    agreement = on.attack.clone()(on.images).argmax(dim=1) == on.logits(on.images).argmax(dim=1)
    assert float(agreement.float().mean()) > 0.95
