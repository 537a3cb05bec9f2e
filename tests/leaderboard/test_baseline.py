"""What counts as a change of strength, and what is never judged."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msbench.errors import UnknownName, UsageError
from msbench.leaderboard.baseline import (
    FALSE_ALARMS,
    NORMAL_FALSE_ALARMS,
    STRENGTH,
    Baseline,
    BaselineCell,
    Planned,
    as_baseline,
    compare,
    dumps,
    load_baseline,
)
from msbench.leaderboard.limits import SHARE, limits, span
from msbench.leaderboard.record import Record
from scipy import stats

KEY = ("digits/lenet5", 60_000, "none", "dualstudent", "none")
OLD = (0.96, 0.97, 0.98, 0.97, 0.97)


def cell(**values: Any) -> BaselineCell:
    names = dict(zip(("target", "budget", "defense", "attack", "recovery"), KEY, strict=True))
    return BaselineCell(**(names | {"seeds": (0, 1, 2, 3, 4), "clone_accuracy": OLD} | values))


def baseline(**values: Any) -> Baseline:
    return Baseline(suite="ci", protocol="2026.1", cells=(cell(**values),))


def planned(records: list[Record]) -> list[Planned]:
    return [Planned(cell=KEY, seed=record.spec.seed, record=record) for record in records]


def verdicts(known: Baseline, records: list[Record]) -> dict[str, str]:
    return {line.metric: line.verdict for line in compare(known, planned(records))}


@pytest.fixture
def reached(make_record: Any) -> Any:
    """Records of seeds that reached these clone accuracies."""

    def make(*accuracies: float, **other: Any) -> list[Record]:
        return [
            make_record(spec__seed=seed, stolen__clone_accuracy=accuracy, curve=[], **other)
            for seed, accuracy in enumerate(accuracies)
        ]

    return make


def test_the_threshold_of_means_is_a_prediction_interval() -> None:
    quantile = stats.t.ppf(1 - FALSE_ALARMS / (2 * 7), df=len(OLD) - 1)
    expected = quantile * np.std(OLD, ddof=1) * math.sqrt(1 / 3 + 1 / 5)
    assert cell().threshold(3, 7) == pytest.approx(expected, rel=1e-12)
    assert cell(clone_accuracy=(0.97,) * 5).threshold(3, 1) > 0.002, "seeds that agree by luck"


def test_means_within_the_threshold_hold_and_others_do_not() -> None:
    limit, mean = cell().threshold(3, 1), sum(OLD) / 5
    assert cell().verdict(mean + 0.999 * limit, 3, 1) == "held"
    assert cell().verdict(mean - 0.999 * limit, 3, 1) == "held"
    assert cell().verdict(mean - 1.001 * limit, 3, 1) == "weaker"
    assert cell().verdict(mean + 1.001 * limit, 3, 1) == "stronger"


def test_all_that_is_compared_shares_the_false_alarm_rate(reached: Any) -> None:
    (one,) = compare(baseline(), planned(reached(0.97, 0.96, 0.975)))
    assert one.limits == limits(np.array(OLD), 3, NORMAL_FALSE_ALARMS, SHARE)
    two, _ = compare(baseline(kl=(0.6,) * 5), planned(reached(0.97, 0.96, 0.975)))
    assert two.limits == limits(np.array(OLD), 3, NORMAL_FALSE_ALARMS / 2, SHARE)


def test_a_metric_has_changed_where_the_span_of_its_seeds_is_beyond_the_limits(reached: Any) -> None:
    (line,) = compare(baseline(), planned(reached(0.97, 0.96, 0.975)))
    assert (line.verdict, line.values, line.done, line.planned) == ("held", (0.97, 0.96, 0.975), 3, 3)
    assert line.measured == span(np.array(line.values), SHARE)
    below, above = line.limits[0] - 1e-6, line.limits[1] + 1e-6
    for accuracies, verdict in (
        ((below, 0.5, below), "weaker"),
        ((above, 1.0, above), "stronger"),
        ((0.97, 0.1, 0.97), "held"),
        ((0.97, 1.0, 0.97), "held"),
        ((below + 2e-6, 0.1, below + 2e-6), "held"),
    ):
        assert verdicts(baseline(), reached(*accuracies)) == {"clone_accuracy": verdict}


def test_what_a_change_is_called_depends_on_the_metric(reached: Any) -> None:
    known = baseline(kl=(0.61, 0.6, 0.6, 0.62, 0.59), label_entropy=(2.3, 2.29, 2.3, 2.3, 2.29))
    same = {"stolen__kl": 0.6, "diagnostics__label_entropy": 2.3}
    for change, told in (
        ({"stolen__kl": 40.0}, {"kl": "weaker"}),
        ({"stolen__kl": 0.001}, {"kl": "stronger"}),
        ({"diagnostics__label_entropy": 1.0}, {"label_entropy": "changed"}),
        ({"diagnostics__label_entropy": 4.0}, {"label_entropy": "changed"}),
    ):
        found = verdicts(known, reached(0.97, 0.97, 0.97, **(same | change)))
        assert {metric: verdict for metric, verdict in found.items() if verdict != "held"} == told


@pytest.mark.parametrize("record", [None, "failed"])
def test_a_cell_of_which_a_run_is_not_done_is_not_judged(record: Any, reached: Any, make_record: Any) -> None:
    left = [make_record(status="failed", spec__seed=2)] if record else [None]
    for accuracies in ((0.97, 0.96), (0.1, 0.1)):
        runs = planned(reached(*accuracies)) + [Planned(cell=KEY, seed=2, record=each) for each in left]
        assert [run.done for run in runs] == [True, True, False]
        lines = compare(baseline(spent=60_000), runs)
        assert [(line.metric, line.verdict) for line in lines] == [
            ("clone_accuracy", "missing"),
            ("queries", "missing"),
        ]
        assert {(line.done, line.planned) for line in lines} == {(2, 3)}
        assert lines[0].values == accuracies
        assert lines[0].limits == limits(np.array(OLD), 3, NORMAL_FALSE_ALARMS, SHARE)
    (nothing,) = compare(baseline(), [Planned(cell=KEY, seed=seed, record=None) for seed in range(3)])
    assert (nothing.verdict, nothing.measured, nothing.values, nothing.done) == ("missing", None, (), 0)


def test_a_metric_that_a_record_lacks_is_not_judged(reached: Any) -> None:
    lines = verdicts(baseline(label_entropy=(2.3,) * 5), reached(0.97, 0.97, 0.97, diagnostics=None))
    assert lines == {"clone_accuracy": "held", "label_entropy": "missing"}


def test_queries_are_compared_exactly(reached: Any) -> None:
    known = baseline(spent=60_000)
    assert verdicts(known, reached(0.97, 0.97, 0.97))["queries"] == "held"
    one_less = [*reached(0.97, 0.97), *reached(0.97, 0.97, 0.97, budget__spent=59_999)[2:]]
    assert verdicts(known, one_less)["queries"] == "changed"


def test_a_baseline_of_too_few_seeds_is_refused(reached: Any) -> None:
    few = baseline(seeds=(0, 1, 2, 3), clone_accuracy=OLD[:4])
    with pytest.raises(UsageError, match=r"clone_accuracy of 4 seeds for dualstudent .* it takes 5: make a new one"):
        compare(few, planned(reached(0.97, 0.97, 0.97)))


def test_a_cell_without_a_baseline_is_refused(reached: Any) -> None:
    other = ("digits/lenet5", 60_000, "none", "maze", "none")
    with pytest.raises(UsageError, match="maze against none on digits/lenet5 at 60,000 queries: make a new one"):
        compare(baseline(), [Planned(cell=other, seed=0, record=None)])


def test_a_baseline_is_made_and_read_back(reached: Any, tmp_path: Path) -> None:
    accuracies = (0.97, 0.96, 0.98, 0.95, 0.99)
    runs = planned(reached(*accuracies))[::-1]
    made = as_baseline("ci", "2026.1", runs)
    assert made.cells[0].seeds == (0, 1, 2, 3, 4)
    assert made.cells[0].clone_accuracy == accuracies
    assert made.cells[0].spent == 60_000
    assert all(len(made.cells[0].values(metric)) == 5 for metric in STRENGTH)
    path = tmp_path / "mine.json"
    path.write_text(dumps(made))
    assert load_baseline(str(path)) == made
    with pytest.raises(UsageError, match="needs 5 seeds at least"):
        as_baseline("ci", "2026.1", runs[:4])


def test_seeds_that_spent_differently_make_no_number_of_queries_to_compare(reached: Any) -> None:
    records = [*reached(0.97, 0.97, 0.97, 0.97), *reached(*(0.97,) * 5, budget__spent=59_999)[4:]]
    known = as_baseline("ci", "2026.1", planned(records))
    assert known.cells[0].spent is None
    assert "queries" not in verdicts(known, records)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="nothing"):
        load_baseline("nothing")
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"suite": "ci", "protocol": "2026.1", "cells": [], "extra": 1}))
    with pytest.raises(UsageError, match=r"odd\.json is not usable"):
        load_baseline(str(path))
    short = json.loads(dumps(baseline(kl=(0.1,) * 5)))
    short["cells"][0]["kl"] = [0.1]
    path.write_text(json.dumps(short))
    with pytest.raises(UsageError, match="kl: 1 values of 5 seeds"):
        load_baseline(str(path))


def test_other_weights_are_not_compared_with_those_of_the_baseline(reached: Any) -> None:
    records = reached(0.97, 0.97)
    mine = records[0].target.digest
    assert verdicts(baseline(digests=(mine,)), records)["clone_accuracy"] == "held"
    with pytest.raises(UsageError, match=r"attacked other weights .* make a new one with --update"):
        verdicts(baseline(digests=("cd" * 32,)), records)
    several = baseline(digests=("ab" * 32, "cd" * 32))  # each seed with a copy of its own, wherever it was trained
    assert verdicts(several, records)["clone_accuracy"] == "held"
