"""PRADA against a literal transcription of its pseudo-code, one query after the other."""

import msbench.defenses.prada
import numpy as np
import pytest
import torch
from msbench.benchmark.checks import stored
from msbench.components import load
from msbench.defenses.detection import ACCOUNTS
from msbench.defenses.prada import PRADA
from scipy import stats
from torch import Tensor


def literal(images: Tensor, classes: list[int], members: int = 10**6) -> list[float]:
    """1 - W after each query, in plain Python."""
    sets: dict[int, list[np.ndarray]] = {}
    accepted: dict[int, list[float]] = {}
    thresholds: dict[int, float] = {}
    nearest: list[tuple[float, int]] = []
    suspicion, suspicions = 0.0, []
    for number, (image, k) in enumerate(zip(images.flatten(1).double().numpy(), classes, strict=True), 1):
        if k not in sets:
            sets[k], accepted[k], thresholds[k] = [image], [0.0], 0.0
        else:
            d = min(np.linalg.norm(image - other) for other in sets[k])
            nearest.append((d, k))
            if d > thresholds[k] and len(sets[k]) < members:
                sets[k].append(image)
                accepted[k].append(d)
                thresholds[k] = max(thresholds[k], np.mean(accepted[k]) - np.std(accepted[k]))
        if number % 10 == 0:
            counts = {c: sum(1 for _, other in nearest if other == c) for c in sets}
            pooled = np.array([d for d, c in nearest if counts[c] >= 10])
            if len(pooled):
                usual = pooled[abs(pooled - pooled.mean()) < 3 * pooled.std()]
                if len(usual) > 100:
                    suspicion = 1 - stats.shapiro(usual)[0]
        suspicions.append(suspicion)
    return suspicions


def stream(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images, a part of them repeated and a part made in small steps from others, and answers about them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 6, 6, generator=generator)
    images[count // 2 :: 7] = images[: len(images[count // 2 :: 7])].clone()
    close = torch.arange(count // 3, count, 5)
    images[close] = (images[close - 1] + 0.01 * torch.randn(len(close), 1, 6, 6, generator=generator)).clamp(0, 1)
    images = (images * 255).round() / 255
    favored = torch.randint(4, (count,), generator=generator) * (torch.rand(count, generator=generator) < 0.6)
    probs = (torch.eye(4)[favored.long()] + 0.1) / 1.4
    return probs, images


@pytest.fixture
def prada(context):
    def make(**params):
        defense = PRADA(**params)
        defense.prepare(context(num_classes=4))
        defense.attend("customer")
        return defense

    return make


@pytest.mark.parametrize("sizes", [[600], [1, 2, 7, 10, 100, 480], [299, 301]])
@pytest.mark.parametrize("members", [20, 200])
def test_is_the_pseudo_code_however_queries_are_batched(prada, sizes, members):
    defense = prada(members=members, action="none")
    probs, images = stream(600)
    found = []
    for p, x in zip(probs.split(sizes), images.split(sizes), strict=True):
        defense.release(p, x)
        found.append(defense.scores)
    expected = torch.tensor(literal(images, probs.argmax(dim=1).tolist(), members), dtype=torch.float64)
    assert expected.unique().numel() > 20
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)


def test_synthetic_steps_are_flagged_and_spread_images_are_not(prada):
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(400, 1, 6, 6, generator=generator)
    # An attack that perturbs what it has asked: half of its distances are tiny.
    steps = spread.clone()
    steps[200:] = (steps[:200] + 0.02 * torch.randn(200, 1, 6, 6, generator=generator)).clamp(0, 1)
    probs = (torch.eye(4)[torch.arange(400) % 4] + 0.1) / 1.4
    for images, attack in ((spread, False), (steps, True)):
        defense = prada()
        released = defense.release(probs, images)
        verdict = defense.verdict()
        assert bool(verdict.flagged[-1]) is attack
        assert torch.equal(verdict.flagged, verdict.refused)
        uniform = (released - 0.25).abs().amax(dim=1) == 0
        assert torch.equal(uniform, verdict.flagged)


def test_a_restored_account_goes_on_where_it_was(prada):
    whole, resumed = prada(), prada()
    probs, images = stream(600)
    whole.release(probs[:305], images[:305])
    resumed.load_state_dict(stored(whole.state_dict()))
    for defense in (whole, resumed):
        defense.release(probs[305:], images[305:])
    assert whole.scores.unique().numel() > 10
    assert torch.equal(whole.scores, resumed.scores)
    fresh = prada()
    fresh.release(probs[305:], images[305:])
    assert not torch.equal(whole.scores, fresh.scores)


def test_repeating_one_image_is_at_distance_zero_and_never_tested(prada):
    defense = prada()
    defense.release(torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(300, 1), torch.full((300, 1, 6, 6), 0.3))
    assert not defense.verdict().flagged.any()
    assert defense.accounts["customer"]["distances"].abs().max() == 0


def test_state_is_bounded(prada):
    defense = prada(members=5, window=150)
    for seed in range(5):
        defense.release(*stream(300, seed))
    kept = defense.accounts["customer"]
    assert torch.bincount(kept["set_classes"]).tolist() == [5, 5, 5, 5] == kept["count"].long().tolist()
    assert len(kept["set"]) == 20
    assert len(kept["distances"]) == len(kept["distance_classes"]) == 150
    for number in range(100):
        defense.attend(f"account {number}")
        defense.release(*stream(1))
    assert len(defense.accounts) == 64


def test_the_images_of_an_account_are_bounded_in_all(prada, monkeypatch):
    monkeypatch.setattr(msbench.defenses.prada, "_IMAGES", 28)
    defense = prada(members=200, action="none")
    probs, images = stream(600)
    defense.release(probs, images)
    assert torch.bincount(defense.accounts["customer"]["set_classes"]).tolist() == [7, 7, 7, 7]
    expected = torch.tensor(literal(images, probs.argmax(dim=1).tolist(), 7), dtype=torch.float64)
    torch.testing.assert_close(defense.scores, expected, rtol=0, atol=1e-6)


def test_a_class_asked_about_in_one_batch_takes_few_passes(prada, monkeypatch):
    passes = []
    ledger = msbench.defenses.prada._Ledger
    monkeypatch.setattr(msbench.defenses.prada, "_Ledger", lambda *parts: passes.append(1) or ledger(*parts))
    generator = torch.Generator().manual_seed(0)
    prada().release(torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(256, 1), torch.rand(256, 1, 6, 6, generator=generator))
    assert len(passes) <= 32, "one for each query before"


@pytest.mark.parametrize("name", ["prada", "seat", "hoda"])
def test_tells_that_accounts_are_forgotten(name):
    assert f"At most {ACCOUNTS} accounts are remembered" in load("defense", name).traits.weakness


def test_the_newest_distances_are_tested(prada, monkeypatch):
    """Of 150 at most, however many there were, and however they came."""
    monkeypatch.setattr(msbench.defenses.prada, "shapiro_wilk", lambda distances, _: float(distances.sum()))
    probs, images = stream(600)
    unbounded, bounded = prada(action="none"), prada(action="none", window=150)
    unbounded.release(probs, images)
    for some, asked in zip(probs.split(70), images.split(70), strict=True):
        bounded.release(some, asked)
    everything, kept = (each.accounts["customer"] for each in (unbounded, bounded))
    newest = everything["distances"][-150:]
    assert float(bounded.scores[-1]) == pytest.approx(1 - float(newest.sum()), abs=1e-3)
    torch.testing.assert_close(kept["distances"], newest, rtol=0, atol=1e-5)
    assert torch.equal(kept["distance_classes"], everything["distance_classes"][-150:])
