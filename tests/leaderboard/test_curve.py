"""What is read off a curve: which clone an attacker is left with."""

import pytest
from msbench.leaderboard.curve import before_refusal, kept_accuracy
from msbench.leaderboard.scoring import cells, stolen_share


@pytest.fixture
def caught(make_record):
    """A run whose clone had 50 % after 15,000 queries and 61 % after 30,000, and 10 % in the end."""

    def build(final=0.1, **detection):
        marks = [(15_000, 0.5), (30_000, 0.61), (60_000, final)]
        return make_record(
            stolen__clone_accuracy=final,
            stolen__agreement=final,
            curve=[
                {"queries": queries, "clone_accuracy": at, "agreement": at, "defended_accuracy": 0.987}
                for queries, at in marks
            ],
            diagnostics__detection=detection or None,
        )

    return build


@pytest.mark.parametrize(
    ("refused", "kept"),
    [
        (20_001, 0.61),
        (30_000, 0.61),  # from the 30,001st query on
        (30_001, 0.5),
        (45_001, 0.1),  # no clone is known from before
        (0, 0.1),  # poisoned: nobody tells the attacker
    ],
)
def test_an_attacker_who_is_refused_keeps_the_clone_from_before(caught, refused, kept):
    record = caught(flagged=max(refused, 100), refused=refused, first_flagged=60_001 - max(refused, 100))
    assert kept_accuracy(record) == kept
    (cell,) = cells([record])
    assert cell.stolen_share.mean == stolen_share(kept, 0.987, 0.1)
    assert (cell.clone_accuracy.mean, cell.agreement.mean) == (kept, 0.1)


def test_one_early_refusal_hides_nothing(caught):
    assert kept_accuracy(caught(flagged=20_000, refused=20_000, first_flagged=1)) == 0.61


def test_without_a_detector_the_final_clone_is_what_counts(caught):
    assert kept_accuracy(caught()) == 0.1


def test_a_clone_that_went_on_getting_better_is_what_counts(caught):
    record = caught(final=0.7, flagged=5, refused=5, first_flagged=40_000)
    assert before_refusal(record).clone_accuracy == 0.61
    assert kept_accuracy(record) == 0.7


def test_without_a_clone_nothing_is_kept(make_record):
    assert kept_accuracy(make_record(status="interrupted")) is None
