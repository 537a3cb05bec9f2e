"""Every measurement equals an independent reference, or what a few lines of arithmetic give."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msbench.benchmark import metrics
from msbench.leaderboard.record import CurvePoint
from msbench.targets.datasets.base import TensorImages
from scipy.special import rel_entr
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn


def simplex(rows: int, classes: int = 10, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    """Random probability vectors, float32."""
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(rows, classes, generator=generator)).softmax(dim=1)


def labels_for(rows: int, classes: int = 10, seed: int = 1) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


def point(queries: int, accuracy: float) -> CurvePoint:
    return CurvePoint(queries=queries, clone_accuracy=accuracy, agreement=0.0, defended_accuracy=0.0)


@pytest.mark.parametrize("steps", [3, 10, 10_000])
def test_auroc_is_scikit_learns_with_and_without_ties(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    inside = torch.randint(steps, (211,), generator=generator) / steps + 0.1
    outside = torch.randint(steps, (97,), generator=generator) / steps
    truth = np.r_[np.ones(211), np.zeros(97)]
    expected = roc_auc_score(truth, torch.cat([inside, outside]).double().numpy())
    assert metrics.auroc(inside, outside) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_separated_and_of_equal_scores() -> None:
    low, high = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4, 0.5])
    assert metrics.auroc(high, low) == 1.0
    assert metrics.auroc(low, high) == 0.0
    assert metrics.auroc(torch.full((4,), 0.7), torch.full((9,), 0.7)) == 0.5


def test_calibration_error_by_hand() -> None:
    # Of 15 bins: confidences 0.90 and 0.92 share the 14th, 0.5 is in the 8th, 0.34 in the 6th.
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.08, 0.92, 0.0], [0.5, 0.3, 0.2], [0.33, 0.33, 0.34]])
    hits = [True, False, True, False]
    labels = torch.tensor([0, 0, 0, 1])
    assert (probs.argmax(dim=1) == labels).tolist() == hits
    expected = (abs((1 + 0) - (0.9 + 0.92)) + abs(1 - 0.5) + abs(0 - 0.34)) / 4
    assert metrics.calibration_error(probs, probs.argmax(dim=1) == labels) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_against_a_loop_over_bins() -> None:
    probs, labels = simplex(500), labels_for(500)
    confidence, top = probs.double().max(dim=1)
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            accuracy = (top == labels)[inside].double().mean()
            expected += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    assert metrics.calibration_error(probs, probs.argmax(dim=1) == labels) == pytest.approx(expected, abs=1e-12)


def test_one_hot_answers_have_the_error_rate_as_calibration_error() -> None:
    labels = labels_for(40)
    answers = nn.functional.one_hot((labels + (torch.arange(40) % 4 == 0)) % 10, 10).float()
    assert metrics.calibration_error(answers, answers.argmax(dim=1) == labels) == 0.25


def test_negative_log_likelihood_is_scikit_learns() -> None:
    probs, labels = simplex(300).double(), labels_for(300)
    probs = probs / probs.sum(dim=1, keepdim=True)  # the peer insists on more than float32's sums
    expected = log_loss(labels.numpy(), probs.numpy(), labels=list(range(10)))
    assert metrics.negative_log_likelihood(probs, labels) == pytest.approx(expected, rel=1e-9)


def test_negative_log_likelihood_floors_what_is_ruled_out() -> None:
    answers = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = -math.log(1e-12) / 2
    assert metrics.negative_log_likelihood(answers, torch.tensor([0, 1])) == pytest.approx(expected, rel=1e-12)


def test_kl_divergence_is_scipys() -> None:
    p, q = simplex(200, seed=2).double(), simplex(200, seed=3).double()
    expected = rel_entr(p.numpy(), q.numpy()).sum(axis=1).mean()
    assert metrics.kl_divergence(p, q) == pytest.approx(expected, rel=1e-9)


def test_a_clone_that_diverged_is_not_near() -> None:
    assert math.isnan(metrics.kl_divergence(torch.full((2, 3), 1 / 3), torch.full((2, 3), torch.nan)))


def test_kl_divergence_goes_from_the_first_to_the_second() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert metrics.kl_divergence(p, q) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5), rel=1e-6)
    assert metrics.kl_divergence(q, p) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-6)
    assert metrics.kl_divergence(p, p) == 0.0
    assert math.isfinite(metrics.kl_divergence(p, torch.tensor([[1.0, 0.0]])))


@pytest.mark.parametrize("rows", [1, 2, 19, 20, 21, 100, 333])
def test_distance_is_mean_nearest_rank_percentile_and_maximum(rows: int) -> None:
    released, clean = simplex(rows, seed=4), simplex(rows, seed=5)
    l1 = np.abs(released.double().numpy() - clean.double().numpy()).sum(axis=1)
    found = metrics.distance(released, clean)
    assert found.mean == pytest.approx(l1.mean(), abs=1e-12)
    assert found.p95 == pytest.approx(np.percentile(l1, 95, method="inverted_cdf"), abs=1e-12)
    assert found.max == pytest.approx(l1.max(), abs=1e-12)


def test_nearest_distance_against_brute_force() -> None:
    generator = torch.Generator().manual_seed(6)
    queries = torch.rand(30, 1, 8, 8, generator=generator)
    data = torch.rand(70, 1, 8, 8, generator=generator)
    expected = np.mean([min(float((q - d).square().mean().sqrt()) for d in data) for q in queries])
    assert metrics.nearest_distance(queries, data) == pytest.approx(expected, rel=1e-5)


def test_a_queried_data_image_is_at_no_distance() -> None:
    data = torch.rand(400, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    assert metrics.nearest_distance(data[100:200], data) == 0.0


def test_nearest_distance_of_black_from_white_is_one_at_any_size() -> None:
    for side in (4, 32):
        black, white = torch.zeros(2, 3, side, side), torch.ones(5, 3, side, side)
        assert metrics.nearest_distance(black, white) == pytest.approx(1.0, rel=1e-6)


def test_area_under_the_curve_by_hand() -> None:
    # Two trapezoids over log-queries, of widths log 2 and log 5: 0.3 log 2 + 0.6 log 5, over log 10.
    curve = [point(10, 0.2), point(20, 0.4), point(100, 0.8)]
    expected = (0.3 * math.log(2) + 0.6 * math.log(5)) / math.log(10)
    assert metrics.area_under_curve(curve) == pytest.approx(expected, rel=1e-12)
    assert metrics.area_under_curve([point(3, 0.7)]) == 0.7
    assert metrics.area_under_curve([point(3, 0.7), point(9, 0.7)]) == pytest.approx(0.7)


@given(st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 1)), min_size=1, max_size=12, unique_by=lambda p: p[0]))
@settings(deadline=None, max_examples=50)
def test_area_under_the_curve_lies_between_its_lowest_and_highest_point(pairs: list[tuple[int, float]]) -> None:
    heights = [height for _, height in pairs]
    area = metrics.area_under_curve([point(*pair) for pair in sorted(pairs)])
    assert min(heights) - 1e-9 <= area <= max(heights) + 1e-9


def test_queries_to_is_the_first_milestone_that_reaches_it() -> None:
    curve = [point(10, 0.1), point(20, 0.6), point(40, 0.5), point(80, 0.9)]
    assert metrics.queries_to(curve, 0.5) == 20
    assert metrics.queries_to(curve, 0.6) == 20
    assert metrics.queries_to(curve, 0.61) == 80
    assert metrics.queries_to(curve, 0.95) is None
    assert metrics.queries_to([], 0.0) is None


def test_milestones_of_a_round_budget() -> None:
    assert metrics.milestones(51_200) == [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200]


@pytest.mark.parametrize(
    ("budget", "marks"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (7, [1, 2, 4, 7]), (100, [1, 2, 4, 7, 13, 25, 50, 100])],
)
def test_milestones_of_tiny_budgets(budget: int, marks: list[int]) -> None:
    assert metrics.milestones(budget) == marks


@given(st.integers(1, 10**9))
@settings(deadline=None, max_examples=100)
def test_milestones_are_ten_doubling_marks_that_end_at_the_budget(budget: int) -> None:
    marks = metrics.milestones(budget)
    assert marks[-1] == budget
    assert marks[0] >= 1
    assert len(marks) == (10 if budget > 512 else math.ceil(math.log2(budget)) + 1)
    assert all(low < high <= 2 * low for low, high in pairwise(marks))


def test_predict_is_the_softmax_of_all_images_whatever_the_batch() -> None:
    generator = torch.Generator().manual_seed(8)
    pixels = torch.randint(256, (23, 1, 4, 4), generator=generator, dtype=torch.uint8)
    images = TensorImages(pixels, labels_for(23))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).eval()
    expected = model(pixels.float() / 255).softmax(dim=1).detach()
    for batch in (1, 7, 23, 1024):
        torch.testing.assert_close(metrics.predict(model, images, batch), expected)
    assert not metrics.predict(model, images).requires_grad
    assert metrics.all_labels(images, batch=5).tolist() == images.labels.tolist()


def test_shares() -> None:
    a = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    b = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.1, 0.9]])
    assert metrics.same_top(a, b) == 0.75
    assert metrics.share(torch.tensor([True, False, False])) == 1 / 3
    assert metrics.share(torch.tensor([], dtype=torch.bool)) == 0.0
