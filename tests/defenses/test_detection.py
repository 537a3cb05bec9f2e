"""What detectors share: limits, actions, accounts; and the gate on single queries."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.components import load
from msbench.defenses.base import Traits
from msbench.defenses.detection import Account, Detector, confuse, limit_for, split
from msbench.defenses.ood_gate import OODGate
from torch import Tensor


@dataclass(kw_only=True)
class Counter(Detector):
    """Suspects by how many queries the account has sent; more than five are too many."""

    traits: ClassVar[Traits] = Traits(argmax_preserving=False, stateful=True, needs=("account",))

    def newcomer(self) -> Account:
        return {"asked": 0}

    def suspicion(self, probs: Tensor, images: Tensor, account: Account) -> Tensor:
        start = account["asked"]
        account["asked"] += len(images)
        return torch.arange(start + 1, start + len(images) + 1)


@pytest.fixture
def counter(context):
    def make(action="refuse"):
        defense = Counter(action=action)
        defense.prepare(context())
        defense.limit = 5
        return defense

    return make


def flags(defense: Detector, account: str | None, images: Tensor) -> list[bool]:
    defense.attend(account)
    defense.release(torch.full((len(images), 10), 0.1), images)
    return defense.verdict().flagged.tolist()


def test_accounts_have_states_of_their_own_and_newcomers_none(counter, images):
    defense = counter()
    assert flags(defense, "a", images(4)) == [False] * 4
    assert flags(defense, "b", images(4)) == [False] * 4
    assert flags(defense, "a", images(3)) == [False, True, True]
    for _ in range(2):
        assert flags(defense, None, images(6)) == [False] * 5 + [True]
    assert sorted(defense.accounts) == ["a", "b"]
    other = counter()
    other.load_state_dict(defense.state_dict())
    other.limit = 5
    assert flags(other, "b", images(2)) == [False, True]


def test_the_accounts_that_asked_last_are_remembered(counter, images):
    defense = counter()
    for number in range(64):
        flags(defense, f"account {number}", images(5))
    assert flags(defense, "account 0", images(1)) == [True]
    flags(defense, "one more", images(1))
    assert flags(defense, "account 0", images(1)) == [True]
    assert flags(defense, "account 1", images(1)) == [False]


def test_actions(counter, answers, images):
    probs = answers(8)
    outcomes = {}
    for action in ("none", "refuse", "poison"):
        defense = counter(action)
        outcomes[action] = defense.release(probs.clone(), images(8))
        assert torch.equal(outcomes[action][:5], probs[:5])
        assert defense.verdict().flagged.tolist() == [False] * 5 + [True] * 3
        assert bool(defense.verdict().refused.any()) is (action == "refuse")
        assert (defense.traits.argmax_preserving, defense.traits.stateful) == (action == "none", action != "none")
    assert torch.equal(outcomes["none"], probs)
    assert torch.equal(outcomes["refuse"][5:], torch.full((3, 10), 0.1))
    assert not (outcomes["poison"][5:].argmax(dim=1) == probs[5:].argmax(dim=1)).any()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_confused_answer_holds_the_same_numbers_and_another_top(answers, classes):
    probs = answers(100, classes)
    confused = confuse(probs)
    assert torch.equal(confused.sort(dim=1).values, probs.sort(dim=1).values)
    second = probs.topk(2, dim=1).indices[:, 1]
    assert torch.equal(confused.argmax(dim=1), second)


def test_three_classes_change_places_in_a_ring():
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])
    assert torch.equal(confuse(probs), torch.tensor([[0.15, 0.5, 0.3, 0.05], [0.1, 0.3, 0.4, 0.2]]))


@pytest.mark.parametrize("name", ["ood_gate", "hoda", "seat"])
def test_nothing_is_trained_on_the_images_that_a_limit_is_fitted_to(name, context, monkeypatch):
    trained_on = []
    monkeypatch.setattr(f"msbench.defenses.{name}.train", lambda _, images, *__, **___: trained_on.append(images))
    made = context(seed=613)
    load("defense", name).prepare(made)
    seen, unseen = split(made)
    assert [len(images) for images in trained_on] == [len(seen)]
    assert len(seen) + len(unseen) == len(made.data())
    assert len(unseen) == 26


@given(st.integers(1, 3000), st.sampled_from([0.001, 0.01, 0.1, 0.5]))
@settings(deadline=None, max_examples=50)
def test_a_limit_keeps_its_rate(count, rate):
    """Of N + 1 exchangeable scores, the new one exceeds the limit with as many of the N + 1 ranks as may be."""
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(count)).double()
    limit = limit_for(scores, rate)
    exceeded = sum(1 for rank in range(count + 1) if rank - 0.5 > limit)  # a new score between the others
    assert exceeded <= max(rate * (count + 1) + 1e-9, 1)
    if rate * (count + 1) >= 1:
        assert exceeded == int(rate * (count + 1) + 1e-9)


def test_the_parts_of_the_data_are_disjoint_and_together_all(context):
    seen, unseen = split(context())
    data = context().data()
    assert (len(seen), len(unseen)) == (102, 26)
    everything = torch.cat([images for part in (seen, unseen) for images, _ in part.batches(50)])
    whole, _ = data.take(torch.arange(128))
    assert torch.equal(everything.flatten(1).sum(1).sort().values, whole.flatten(1).sum(1).sort().values)
    taken, labels = unseen.take(torch.tensor([3, 1]))
    batch, batch_labels = next(unseen.batches(2, order=torch.tensor([3, 1])))
    assert torch.equal(taken, batch) and torch.equal(labels, batch_labels)


@pytest.mark.parametrize("score", ["energy", "confidence"])
def test_the_gate_flags_no_more_than_its_rate_of_what_it_has_not_seen(context, answers, score):
    made = context(num_classes=4)
    gate = OODGate(score=score, false_positives=0.2)
    gate.prepare(made)
    _, unseen = split(made)
    images, _ = unseen.take(torch.arange(len(unseen)))
    gate.release(answers(len(images), 4), images)
    assert int(gate.verdict().flagged.sum()) == 26 - 22  # the limit is the 22nd of 26: ceil(27 · 0.8)
    logits = gate.network(images).double()
    score_by_hand = -(logits.exp().sum(1).log()) if score == "energy" else -logits.softmax(1).max(1).values
    torch.testing.assert_close(gate.scores, score_by_hand)
