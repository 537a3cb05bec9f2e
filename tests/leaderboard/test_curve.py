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
    ("detection", "kept"),
    [
        ({"flagged": 100, "refused": 100, "first_flagged": 40_000}, 0.61),
        ({"flagged": 100, "refused": 100, "first_flagged": 30_001}, 0.61),
        ({"flagged": 100, "refused": 100, "first_flagged": 30_000}, 0.5),
        ({"flagged": 100, "refused": 100, "first_flagged": 15_000}, 0.1),  # no clone is known from before
        ({"flagged": 100, "refused": 0, "first_flagged": 40_000}, 0.1),  # poisoned: nobody tells the attacker
        ({"flagged": 0, "refused": 0, "first_flagged": None}, 0.1),
        # Of the 40,000 that were flagged half were refused: the first of these may have been the 40,001st.
        ({"flagged": 40_000, "refused": 20_000, "first_flagged": 10}, 0.61),
        ({}, 0.1),
    ],
)
def test_an_attacker_who_is_refused_keeps_the_clone_from_before(caught, detection, kept):
    record = caught(**detection)
    assert kept_accuracy(record) == kept
    (cell,) = cells([record])
    assert cell.stolen_share.mean == stolen_share(kept, 0.987, 0.1)
    assert cell.clone_accuracy.mean == 0.1


def test_a_clone_that_went_on_getting_better_is_what_counts(caught):
    record = caught(final=0.7, flagged=5, refused=5, first_flagged=40_000)
    assert before_refusal(record).clone_accuracy == 0.61
    assert kept_accuracy(record) == 0.7


def test_without_a_clone_nothing_is_kept(make_record):
    assert kept_accuracy(make_record(status="interrupted")) is None
