"""EDM: the hash's formula, who answers what, and what training makes of the members."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from msbench.benchmark.cli.wording import family
from msbench.defenses.base import DefenseContext
from msbench.defenses.edm import EDM, Ensemble, coherence, turned
from msbench.targets.datasets.base import TensorImages
from msbench.targets.training import Recipe
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[..., DefenseContext]
Draw = Callable[..., Tensor]
RECIPE = Recipe(epochs=40, batch=64, lr=1e-2, weight_decay=0)


def stripes(rows: bool, *, seed: int) -> TensorImages:
    """256 noisy 6x6 images with one bright row or column, which is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(256) % 6
    bright = F.one_hot(labels, 6)[:, :, None] if rows else F.one_hot(labels, 6)[:, None, :]
    pixels = 160 * bright + torch.randint(0, 60, (256, 6, 6), generator=generator)
    return TensorImages(pixels.byte().unsqueeze(1), labels)


class Constant(nn.Module):
    """Answers every image with the same logits, plus the image's first pixel, which tells images apart."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))
        self.logits: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + images.flatten(1)[:, :1]


def test_the_hash_follows_the_published_formula(context: Make, images: Draw) -> None:
    """Written out for one image at a time, with the published constants: ten classes, two levels."""
    chooser = context(10).new_surrogate(3).requires_grad_(False)
    ensemble = Ensemble(nn.ModuleList(Constant([0.0]) for _ in range(5)), chooser, classes=10, levels=2)
    asked = 8 * images(300)  # large pixels give every level of confidence
    expected = []
    for row in chooser(asked).double().softmax(dim=1):
        label, confidence = int(row.argmax()), float(row.max())
        expected.append((2 * label + int((10 * confidence - 1) * 2 / 9)) % 5)
    assert ensemble.choose(asked).tolist() == expected
    assert set(expected) == set(range(5))


def test_every_image_gets_the_answer_of_its_member(context: Make, images: Draw) -> None:
    members = nn.ModuleList(Constant([float(10 * i)]) for i in range(5))
    ensemble = Ensemble(members, context(10).new_surrogate(3), classes=10, levels=2)
    asked = images(64)
    expected = 10 * ensemble.choose(asked) + asked.flatten(1)[:, 0]
    torch.testing.assert_close(ensemble(asked).squeeze(1), expected)
    torch.testing.assert_close(ensemble(asked[:1]).squeeze(1), expected[:1])


def test_coherence_is_the_largest_cosine_of_a_pair() -> None:
    answers = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=2)
    pairs = [F.cosine_similarity(answers[i], answers[j], dim=1) for i, j in combinations(range(4), 2)]
    torch.testing.assert_close(coherence(answers), torch.stack(pairs).amax(dim=0))


@pytest.fixture(scope="module")
def learned(context: Make) -> DefenseContext:
    """Rows are the target's data, columns are unrelated."""
    return replace(
        context(6), data=lambda: stripes(True, seed=0), auxiliary=lambda _: stripes(False, seed=1), recipe=RECIPE
    )


def test_members_agree_on_the_data_and_on_nothing_else(learned: DefenseContext) -> None:
    pixels, labels = stripes(True, seed=2).take(torch.arange(256))
    others, _ = stripes(False, seed=3).take(torch.arange(256))
    unrelated = []
    for diversity in (0.0, 3.0):
        defense = EDM(diversity=diversity, members=3)
        defense.prepare(learned)
        members = defense.network.members
        assert float((defense.deploy(learned.target())(pixels).argmax(dim=1) == labels).float().mean()) > 0.95
        unrelated.append(float(coherence(torch.stack([m(others).softmax(dim=1) for m in members])).mean()))
    assert unrelated[1] < unrelated[0] - 0.2


def test_it_is_ranked_by_its_training_and_releases_what_it_is_given(answers: Draw, images: Draw) -> None:
    assert family(EDM().traits) == "training"
    assert EDM().release(answers(), images(50)).equal(answers())


def test_the_hash_tells_unrelated_classes_and_turns_apart(learned: DefenseContext) -> None:
    """Six columns in four turns are 24 classes, of which two differ in parity: a column turned once is a row."""
    defense = EDM(members=2)
    defense.prepare(replace(learned, num_classes=24, new_surrogate=lambda seed: wider(seed)))
    others, labels = stripes(False, seed=3).take(torch.arange(256))
    network = defense.network
    assert network.classes == 24
    quarter = torch.ones_like(labels)
    for turn in (0 * quarter, quarter):
        found = network.chooser(turned(others, turn)).argmax(dim=1)
        assert torch.equal(turned(others, turn), others.rot90(int(turn[0]), (2, 3)))
        assert float((found % 2 == turn).float().mean()) > 0.9  # half turns of a column are columns


def wider(seed: int) -> nn.Module:
    """An untrained network of 24 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 24))


def test_the_hash_has_as_many_classes_as_the_architecture(learned: DefenseContext) -> None:
    defense = EDM(members=2)
    defense.prepare(replace(learned, recipe=replace(RECIPE, epochs=1)))
    assert defense.network.classes == 6  # of four turns of six classes


def test_the_objective_weighs_the_mean_coherence_on_unrelated_images(context: Make, images: Draw) -> None:
    members = nn.ModuleList(context(4).new_surrogate(seed) for seed in range(3))
    known, labels, unrelated = images(8), torch.arange(8) % 4, images(5, seed=1)
    expected = sum(F.cross_entropy(member(known), labels) for member in members)
    answers = torch.stack([member(unrelated).softmax(dim=1) for member in members])
    expected = expected + 2 * coherence(answers).mean()
    torch.testing.assert_close(EDM(diversity=2.0).loss(members, known, labels, unrelated), expected)
