"""Knockoff Nets: which images it asks about, how the bandit learns, and what it trains for each milestone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msbench.attacks import transfer_set
from msbench.attacks.knockoff import ClassBandit, Rewards
from msbench.errors import UsageError
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = "knockoff:query_batch=20,epochs=2,batch=16"
ADAPTIVE = f"{SMALL},strategy=adaptive"
Same = Callable[[nn.Module, nn.Module], bool]


def test_no_image_is_asked_about_twice_and_all_are_of_the_pool(stage: Callable[..., Any]) -> None:
    on = stage(SMALL, budget=110)
    on.run()
    pool, _ = on.attack.transfer_set.pool.take(torch.arange(150))
    assert len(on.images) == 110
    assert len(on.images.unique(dim=0)) == 110
    assert len(torch.cat([pool, on.images]).unique(dim=0)) == 150


def test_the_choice_is_random_and_follows_the_seed(stage: Callable[..., Any]) -> None:
    first, again, other = (stage(SMALL, budget=60, seed=seed) for seed in (0, 0, 1))
    for on in (first, again, other):
        on.run()
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    in_file_order, _ = first.attack.transfer_set.pool.take(torch.arange(60))
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


# --------------------------------------------------------------------------------------------------- the bandit


def bandit(sizes: list[int], seed: int = 0) -> ClassBandit:
    """A bandit on a pool of classes of these sizes, whose images are shuffled."""
    classes = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    mixed = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(1))]
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(2))
    return ClassBandit(mixed, order, torch.Generator().manual_seed(seed))


def textbook(sizes: list[int], actions: list[int], rewards: list[float]) -> list[float]:
    """Preferences after one reward after the other, as Sutton and Barto write it, with 1 / n(a) for the rate."""
    preferences, left, counts = [0.0] * len(sizes), list(sizes), [0] * len(sizes)
    for t, (action, reward) in enumerate(zip(actions, rewards, strict=True)):
        baseline = sum(rewards[:t]) / t if t else reward
        weights = [math.exp(h) if rest else 0.0 for h, rest in zip(preferences, left, strict=True)]
        counts[action] += 1
        left[action] -= 1
        for a in range(len(sizes)):
            slope = (a == action) - weights[a] / sum(weights)
            preferences[a] += (reward - baseline) / counts[action] * slope
    return preferences


def test_the_bandits_update_is_the_textbooks() -> None:
    sizes = [9, 4, 2, 20]
    learner, actions, rewards = bandit(sizes), [], []
    for t in range(30):  # long enough for classes to run out
        action, _ = learner.draw(1)
        reward = torch.tensor([math.sin(3.0 * t) + float(action)])
        learner.update(action, reward)
        actions.append(int(action))
        rewards.append(float(reward))
    assert len(set(actions)) == 4
    expected = torch.tensor(textbook(sizes, actions, rewards))
    torch.testing.assert_close(learner.preferences, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_of_queries_is_one_update_by_the_sum() -> None:
    learner = bandit([10, 10, 10])
    learner.update(torch.tensor([0, 1, 0, 2]), torch.tensor([3.0, 1.0, 2.0, 2.0]))  # baseline 2, policy 1/3
    advantages = {0: 1 / 1 + 0 / 2, 1: -1 / 1, 2: 0.0}
    first = [advantages[a] - sum(advantages.values()) / 3 for a in range(3)]
    torch.testing.assert_close(learner.preferences, torch.tensor(first))
    learner.update(torch.tensor([0, 0]), torch.tensor([5.0, 2.0]))  # baseline still 2, counts 3 and 4
    policy = torch.tensor(first).softmax(dim=0)
    second = torch.tensor(first) + (3 / 3 + 0 / 4) * (torch.tensor([1.0, 0.0, 0.0]) - policy)
    torch.testing.assert_close(learner.preferences, second)
    assert learner.drawn.tolist() == [4, 1, 1]


def test_draws_follow_the_policy_one_after_the_other() -> None:
    learner = bandit([1, 2, 3])
    learner.preferences = torch.tensor([0.5, 0.2, 0.3]).log()
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(6000):
        actions, _ = learner.draw(3)
        counts[tuple(actions.tolist())] = counts.get(tuple(actions.tolist()), 0) + 1
    # The only image of class 0 once drawn, the others share what is left of the policy.
    expected = {(0, 1, 1): 0.5 * 0.4 * 0.4, (1, 0, 2): 0.2 * 0.5 * 0.6, (2, 2, 2): 0.3**3, (1, 1, 0): 0.2 * 0.2 * 5 / 8}
    for actions, probability in expected.items():
        spread = math.sqrt(6000 * probability * (1 - probability))
        assert abs(counts[actions] - 6000 * probability) < 4 * spread
    assert (0, 0, 1) not in counts


def test_drawn_images_are_new_ones_of_the_drawn_class() -> None:
    learner = bandit([7, 1, 12])
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate([7, 1, 12])])
    classes = labels[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    seen: list[int] = []
    for count in (6, 1, 9, 4):
        actions, places = learner.draw(count)
        assert torch.equal(classes[places], actions)
        learner.update(actions, torch.randn(count, generator=torch.Generator().manual_seed(count)))
        seen += places.tolist()
    assert sorted(seen) == list(range(20))


def test_a_rewarded_class_is_drawn_more_often() -> None:
    learner = bandit([3000] * 4)
    for _ in range(300):
        actions, _ = learner.draw(4)
        learner.update(actions, (actions == 2).float())
    assert learner.preferences.argmax() == 2
    assert learner.drawn[2] == learner.drawn.max()
    assert int(learner.drawn[2]) > 2 * int(learner.drawn.sum()) / 4


def test_a_hopeless_class_is_drawn_when_nothing_else_is_left() -> None:
    learner = bandit([3, 2])
    learner.preferences = torch.tensor([0.0, -1000.0])
    actions, places = learner.draw(5)
    assert actions.tolist() == [0, 0, 0, 1, 1]
    assert sorted(places.tolist()) == list(range(5))


def standardized(values: list[float], count: int) -> list[float]:
    """The last ``count`` values, in deviations of all of them from their mean."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation if deviation else 0.0 for value in values[-count:]]


def test_rewards_are_certainty_diversity_and_loss_in_equal_parts() -> None:
    drawn = torch.Generator().manual_seed(5)
    reward, terms, before = Rewards(4, torch.device("cpu")), [], []
    for size in (3, 1, 5):
        answers = torch.rand(size, 4, generator=drawn).softmax(dim=1)
        surprise = torch.rand(size, generator=drawn)
        known = before or answers.tolist()
        average = [sum(row[k] for row in known) / len(known) for k in range(4)]
        for row, loss in zip(answers.tolist(), surprise.tolist(), strict=True):
            top = sorted(row)
            diversity = sum(max(0.0, row[k] - average[k]) for k in range(4))
            terms.append((top[-1] - top[-2], diversity, loss))
        before += answers.tolist()
        each = [standardized([term[i] for term in terms], size) for i in range(3)]
        expected = [sum(values) / 3 for values in zip(*each, strict=True)]
        torch.testing.assert_close(reward(answers, surprise), torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_what_never_varies_is_no_reward() -> None:
    reward = Rewards(10, torch.device("cpu"))
    labels = F.one_hot(torch.zeros(6, dtype=torch.long), 10).float()
    for _ in range(5):
        assert torch.equal(reward(labels, torch.full((6,), 0.1)), torch.zeros(6))


def test_the_adaptive_strategy_asks_about_each_image_once(stage: Callable[..., Any]) -> None:
    on = stage(ADAPTIVE, budget=1000, pool_classes=3)
    report = on.run()
    assert report.reason == "the pool's 150 images are all queried"
    assert len(on.images.unique(dim=0)) == 150
    assert on.attack.bandit.drawn.tolist() == [50, 50, 50]


def test_the_student_is_rewarded_for_what_it_gets_wrong_and_then_learns_it(
    stage: Callable[..., Any], same: Same
) -> None:
    on = stage(ADAPTIVE, budget=40, pool_classes=5)
    student = on.attack.context.new_clone("student 0")
    report = on.run(1)
    answers = on.logits(on.images).softmax(dim=1)
    surprise = F.cross_entropy(student.eval()(on.images), answers, reduction="none").detach()
    expected = Rewards(10, torch.device("cpu"))(answers, surprise)
    torch.testing.assert_close(report.losses["reward"], expected.mean(), rtol=1e-3, atol=1e-5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    loss = F.cross_entropy(student.train()(on.images), answers)
    torch.testing.assert_close(report.losses["student"], loss.detach())
    loss.backward()
    optimizer.step()
    for ours, theirs in zip(on.attack.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(on.attack.bandit.preferences, torch.zeros(5))


def test_the_adaptive_strategy_continues_where_it_was(stage: Callable[..., Any], same: Same) -> None:
    spec = ADAPTIVE.replace("query_batch=20", "query_batch=10")
    whole, resumed = (stage(spec, budget=100, pool_classes=4) for _ in range(2))
    whole.run(4)
    resumed.attack.load_state_dict(whole.attack.state_dict())
    resumed.victim.load_state_dict(whole.victim.state_dict())
    whole.run()
    resumed.run()
    assert torch.equal(whole.images[40:], resumed.images)
    assert same(whole.attack.student, resumed.attack.student)
    assert same(whole.attack.clone(), resumed.attack.clone())


def test_the_rate_decays_over_the_passes_and_each_has_an_order_of_its_own(
    stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}
    rates: list[float] = []
    learned: list[Tensor] = []

    class Recorder:
        def set_lr(self, rate: float) -> None:
            rates.append(rate)

        def learn(self, images: Tensor, targets: Tensor) -> None:
            learned.append(targets)

    monkeypatch.setattr(transfer_set, "build_students", lambda networks, **given: (made.update(given), Recorder())[1])
    on = stage("knockoff:epochs=4,lr=1,schedule=cosine,weight_decay=0.25,batch=50", budget=50)
    on.run()
    on.attack.clone()
    assert (made["lr"], made["weight_decay"]) == (1, 0.25)
    assert rates == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    assert len(learned) == 4
    first, second = learned[:2]
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sum(dim=0), second.sum(dim=0))  # the same answers
    assert not torch.equal(first, on.attack.transfer_set.answers[:50])


def test_a_student_that_diverges_spoils_no_draw(stage: Callable[..., Any]) -> None:
    on = stage(ADAPTIVE, budget=1000, pool_classes=3)
    on.run(1)
    with torch.no_grad():
        next(on.attack.student.parameters()).fill_(torch.nan)
    report = on.run()
    assert report.reason == "the pool's 150 images are all queried"
    assert len(on.images.unique(dim=0)) == 150
    assert bool(on.attack.bandit.preferences.isfinite().all())


def test_only_the_adaptive_strategy_looks_at_labels(stage: Callable[..., Any]) -> None:
    assert not hasattr(stage(SMALL).attack, "bandit")
    plain, labelled = stage(SMALL, budget=60), stage(SMALL, budget=60, pool_classes=7)
    plain.run()
    labelled.run()
    assert torch.equal(plain.images, labelled.images)
