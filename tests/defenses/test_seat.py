"""SEAT: pairs counted one query after the other, the encoder's objective, the limit of distance."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.benchmark.checks import stored
from msbench.defenses.detection import split
from msbench.defenses.seat import SEAT, _others, first_come, without_head
from msbench.errors import BadParameter
from msbench.targets.datasets.base import TensorImages
from msbench.targets.training import Recipe
from torch import nn

RECIPE = Recipe(epochs=1, batch=32, lr=0.003, weight_decay=0.0)


@pytest.fixture
def make_seat(context):
    def make(**params):
        defense = SEAT(**{"pairs": 3, "epochs": 20, "false_positives": 0.1} | params)
        defense.prepare(replace(context(num_classes=4), recipe=RECIPE))
        defense.attend("customer")
        return defense

    return make


@pytest.fixture
def seat(make_seat):
    return make_seat()


@given(st.integers(0, 2**32), st.integers(1, 30), st.floats(0, 0.5))
@settings(deadline=None)
def test_who_comes_first_is_kept(seed, count, density):
    generator = torch.Generator().manual_seed(seed)
    old = torch.rand(count, generator=generator) < 0.2
    alike = (torch.rand(count, count, generator=generator) < density).tril(-1)
    paired = []
    for i in range(count):
        paired.append(bool(old[i]) or any(bool(alike[i, j]) and not paired[j] for j in range(i)))
    assert first_come(old, alike).tolist() == paired


@pytest.mark.parametrize("sizes", [[90], [1, 2, 40, 47], [45, 45]])
def test_pairs_are_counted_one_query_after_the_other(seat, answers, images, sizes):
    asked = images(90)
    asked[10::9] = (asked[9:-1:9] + 1e-3).clamp(0, 1)
    codes = seat.encode(asked).double()
    kept, count, expected = [], 0, []
    for code in codes:
        if kept and min(float((code - other).norm()) for other in kept) < seat.similar:
            count += 1
        else:
            kept.append(code)
        expected.append(count)
    assert 0 < count < 90 and len(kept) > 40
    found = []
    for part in asked.split(sizes):
        seat.release(answers(len(part), 4), part)
        found.append(seat.scores)
    assert torch.cat(found).tolist() == expected
    assert torch.equal(seat.verdict().flagged, seat.scores >= 3)


def test_memory_is_bounded(make_seat, answers, images):
    seat = make_seat(memory=40)
    for seed in range(4):
        seat.release(answers(50, 4), images(50, seed=seed))
    assert len(seat.accounts["customer"]["codes"]) == 40


def test_a_restored_account_goes_on_where_it_was(make_seat, answers, images):
    whole, resumed, fresh = (make_seat() for _ in range(3))
    whole.release(answers(40, 4), images(40))
    resumed.load_state_dict(stored(whole.state_dict()))
    asked = torch.cat([images(2), images(5, seed=1)])  # two repeats and five new ones
    for seat in (whole, resumed, fresh):
        seat.release(answers(7, 4), asked)
    assert torch.equal(whole.scores, resumed.scores)
    assert int(whole.scores[1]) >= int(fresh.scores[1]) + 2


def test_repeats_are_pairs_and_the_account_is_cancelled_for_good(seat, answers, images):
    first, repeats = images(1), images(1).expand(4, -1, -1, -1)
    seat.release(answers(1, 4), first)
    assert seat.scores.tolist() == [0]
    seat.release(answers(4, 4), repeats)
    assert seat.scores.tolist() == [1, 2, 3, 4]
    assert seat.verdict().refused.tolist() == [False, False, True, True]
    seat.release(answers(1, 4), images(1, seed=7))
    assert seat.verdict().flagged.tolist() == [True]


def test_the_objective_is_the_contrastive_one(seat, images, context):
    """With an encoder that sees the mean brightness only, shifts and disguises are small, and known."""
    asked = images(6)
    torch.manual_seed(0)
    found = seat.loss(nn.Flatten(), asked, context())
    flat = asked.flatten(1)
    apart = (flat - flat.roll(1, 0)).square().sum(1)
    torch.manual_seed(0)
    own = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    from msbench.targets.training import augment

    shifted = augment(asked, replace(RECIPE, shift=1), own).flatten(1)
    disguised = seat.least_alike(nn.Flatten(), asked, own).flatten(1)
    near = (flat - shifted).square().sum(1) + (flat - disguised).square().sum(1)
    expected = (near + (10 - apart).clamp_min(0)).mean()
    torch.testing.assert_close(found, expected)


def test_disguises_stay_in_the_ball_and_reach_its_border(seat, images):
    asked = 0.2 + 0.6 * images(5)
    disguised = seat.least_alike(nn.Flatten(), asked, torch.Generator().manual_seed(0))
    assert (disguised - asked).abs().max() <= 0.03 + 1e-6
    assert ((disguised - asked).abs() > 0.0299).double().mean() > 0.9


def test_training_brings_the_objective_down(context):
    blocks = torch.randint(256, (128, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = TensorImages(blocks.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3), torch.zeros(128).long())
    recipe = replace(RECIPE, lr=0.01)
    made = replace(context(num_classes=4), recipe=recipe, data=lambda: data)
    seat = SEAT(epochs=40)
    seat.prepare(made)
    asked, _ = split(made)[1].take(torch.arange(26))
    losses = []
    for encoder in (without_head(made.target()), seat.encoder):
        torch.manual_seed(0)
        losses.append(float(seat.loss(encoder, asked, made).detach()))
    assert losses[1] < 0.8 * losses[0]


def test_the_limit_is_the_quantile_of_unseen_neighbors(seat, context):
    _, unseen = split(context(num_classes=4))
    asked, _ = unseen.take(torch.arange(len(unseen)))
    codes = seat.encode(asked)
    others = [[float((a - b).norm()) for j, b in enumerate(codes) if j != i] for i, a in enumerate(codes)]
    # Of 26, 25 may not be below it: ceil(27 · 0.9).
    assert seat.similar == pytest.approx(sorted(map(min, others))[1], rel=1e-5)
    with pytest.raises(BadParameter, match="last linear layer"):
        without_head(nn.Flatten())


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1]])
def test_a_paired_query_is_not_kept_for_comparison(seat, answers, monkeypatch, sizes):
    monkeypatch.setattr(seat, "encode", lambda images: images.flatten(1)[:, :1])
    seat.similar = 0.3
    asked = torch.tensor([0.0, 0.2, 0.4])[:, None, None, None].expand(-1, 1, 6, 6)  # the last is near the second only
    counts = []
    for part in asked.split(sizes):
        seat.release(answers(len(part), 4), part)
        counts += seat.scores.tolist()
    assert counts == [0, 1, 1]


def test_rates_finer_than_the_images_held_out_give_one_limit(make_seat):
    """Of 26 images the two nearest share their distance, so that rates differ from 3/27 on."""
    limits = [make_seat(false_positives=rate).similar for rate in (0.001, 0.03, 0.1, 0.111, 0.112)]
    assert limits[0] == limits[1] == limits[2] == limits[3] < limits[4]


def test_nobody_is_their_own_neighbor_beyond_the_first_part():
    codes = torch.rand(1500, 3, generator=torch.Generator().manual_seed(0))
    gaps = (codes[:, None] - codes).norm(dim=2).fill_diagonal_(torch.inf)
    found = torch.cat([_others(codes, start) for start in (0, 1024)])
    torch.testing.assert_close(found, gaps.amin(dim=1))


def test_the_newest_queries_are_remembered(make_seat, monkeypatch):
    """Of three the first is forgotten: another like the last makes a pair, one like the first does not."""
    seat = make_seat(memory=2)
    monkeypatch.setattr(seat, "encode", lambda images: images.flatten(1)[:, :1])
    seat.similar, counts = 0.1, []
    for value in (0.0, 0.5, 1.0, 1.0, 0.0):
        seat.release(torch.full((1, 4), 0.25), torch.full((1, 1, 6, 6), value))
        counts += seat.scores.tolist()
    assert counts == [0, 0, 0, 1, 1]
