"""Statistics of the attack's queries, gathered batch by batch, equal those computed from all of them at once."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.benchmark.traffic import BINS, KEPT, SAMPLED, Traffic, account_name
from msbench.defenses.base import load_defense
from msbench.defenses.deployment import Deployment
from msbench.targets.target import Target
from torch import Tensor, nn

CLASSES = 5
SHAPE = (1, 4, 4)


def deployment(defense: str = "rounding:decimals=1") -> Deployment:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    target = Target(network, mean=(0.5,), std=(0.25,), num_classes=CLASSES, image_shape=SHAPE)
    return Deployment(target.eval(), load_defense(defense))


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def observe(traffic: Traffic, sizes: Sequence[int]) -> Tensor:
    """Send batches of these sizes, and return all that was sent."""
    batches = [images(size, seed) for seed, size in enumerate(sizes)]
    for batch in batches:
        traffic.answer(batch)
    return torch.cat(batches)


@pytest.mark.parametrize("defense", ["none", "rounding:decimals=1", "label_only", "topk:k=1+temperature:temperature=3"])
def test_statistics_are_those_of_all_queries_at_once(defense: str) -> None:
    traffic = Traffic(deployment(defense), "anybody")
    sent = observe(traffic, [1, 300, 7, 64, 500])
    clean, released = traffic.deployment.answer(sent)
    l1 = (released - clean).abs().sum(dim=1).double()
    found = traffic.l1()
    assert found is not None
    assert found.mean == pytest.approx(float(l1.mean()), abs=1e-6)
    assert found.max == pytest.approx(float(l1.max()), abs=1e-6)
    exact = float(l1.kthvalue(math.ceil(0.95 * len(l1))).values)
    assert abs(found.p95 - exact) <= 2 / BINS
    assert found.p95 <= found.max

    counts = torch.bincount(clean.argmax(dim=1), minlength=CLASSES)
    assert traffic.label_histogram() == counts.tolist()
    expected = torch.distributions.Categorical(counts.double()).entropy()
    assert traffic.label_entropy() == pytest.approx(float(expected), abs=1e-9)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25)
def test_statistics_do_not_depend_on_how_queries_are_batched(sizes: list[int]) -> None:
    traffic, whole = Traffic(deployment(), "anybody"), Traffic(deployment(), "anybody")
    whole.answer(observe(traffic, sizes))
    assert traffic.label_histogram() == whole.label_histogram()
    ours, theirs = traffic.l1(), whole.l1()
    assert ours is not None and theirs is not None
    assert ours.mean == pytest.approx(theirs.mean, abs=1e-6)
    assert ours.max == pytest.approx(theirs.max, abs=1e-6)
    assert abs(ours.p95 - theirs.p95) <= 2 / BINS  # one rounding may move a distance over an edge of a bin


def test_only_the_last_queries_are_kept() -> None:
    traffic = Traffic(deployment(), "anybody")
    sent = observe(traffic, [100, 100, 100])
    assert torch.equal(traffic.last, sent[-KEPT:])
    sent = observe(traffic, [KEPT + 50])
    assert torch.equal(traffic.last, sent[-KEPT:])


def test_what_is_kept_is_not_what_the_attack_goes_on_with() -> None:
    traffic, batch = Traffic(deployment(), "anybody"), images(9, seed=3)
    released = traffic.answer(batch)
    answered = released.clone()
    for held in (batch, released):
        held.zero_()
    assert torch.equal(traffic.last, images(9, seed=3))
    assert torch.equal(traffic.sample.images, images(9, seed=3))
    assert torch.equal(traffic.sample.released, answered)


def test_names_of_accounts_follow_from_the_run_and_say_nothing() -> None:
    names = {account_name(run, who) for run in ("0123456789ab", "ba9876543210") for who in ("attack", "visitor")}
    assert len(names) == 4
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in names)
    assert account_name("0123456789ab", "attack") == "80421a4735946350"  # today and tomorrow


def test_answers_are_the_deployments() -> None:
    traffic = Traffic(deployment("label_only"), "anybody")
    batch = images(9, seed=3)
    assert torch.equal(traffic.answer(batch), traffic.deployment.answer(batch)[1])


def test_no_traffic_has_no_distance_and_no_entropy() -> None:
    traffic = Traffic(deployment(), "anybody")
    assert traffic.l1() is None
    assert traffic.label_entropy() == 0.0
    assert traffic.label_histogram() == [0] * CLASSES
    assert len(traffic.last) == 0


def test_undefended_answers_are_at_distance_zero() -> None:
    traffic = Traffic(deployment("none"), "anybody")
    observe(traffic, [40])
    assert traffic.l1() == type(traffic.l1())(mean=0.0, p95=0.0, max=0.0)


def test_a_distance_of_two_is_counted() -> None:
    class Liar(Deployment):
        """Certain of the first class, released as certainty of the last."""

        def answer(self, images: Tensor, account: str | None = None) -> tuple[Tensor, Tensor]:
            first, last = torch.eye(CLASSES)[[0, -1]]
            return first.expand(len(images), -1), last.expand(len(images), -1)

    traffic = Traffic(Liar(deployment().target, load_defense("none")), "anybody")
    traffic.answer(images(3, seed=0))
    found = traffic.l1()
    assert found is not None
    assert (found.mean, found.p95, found.max) == (2.0, 2.0, 2.0)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25)
def test_a_sample_of_equal_distances_is_kept_with_its_answers(sizes: list[int]) -> None:
    traffic = Traffic(deployment(), "anybody")
    sent = observe(traffic, sizes)
    kept = traffic.sample
    assert min(len(sent), SAMPLED // 2) <= len(kept.images) <= SAMPLED
    assert torch.equal(kept.images, sent[:: traffic.stride])
    clean, _ = traffic.deployment.answer(kept.images)
    assert torch.allclose(kept.clean, clean, atol=1e-6)
    assert torch.allclose(kept.released, kept.clean, atol=0.1)  # rounded to one digit, and rescaled
    assert bool((kept.released != kept.clean).any())


def test_state_round_trips() -> None:
    whole, first = Traffic(deployment(), "anybody"), Traffic(deployment(), "anybody")
    sizes = [33, 5, 210, 90]
    observe(whole, sizes)
    observe(first, sizes[:2])
    state = first.state_dict()
    for seed, size in list(enumerate(sizes))[2:]:
        first.answer(images(size, seed))  # what is saved must not be what goes on changing
    second = Traffic(deployment(), "anybody")
    second.load_state_dict(state)
    for seed, size in list(enumerate(sizes))[2:]:
        second.answer(images(size, seed))
    assert_same_state(second.state_dict(), whole.state_dict())


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours["asked"] == theirs["asked"] > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
