"""What counts as a change of strength: the threshold's arithmetic, and how often it is wrong."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msbench.errors import UnknownName, UsageError
from msbench.leaderboard.baseline import (
    FALSE_ALARMS,
    FOLDER,
    STRENGTH,
    Baseline,
    BaselineCell,
    as_baseline,
    compare,
    dumps,
    load_baseline,
)
from msbench.leaderboard.record import Record
from scipy import stats

KEY = ("digits/lenet5", 60_000, "none", "dualstudent", "none")
OLD = (0.96, 0.97, 0.98, 0.97, 0.97)


def cell(**values: Any) -> BaselineCell:
    names = dict(zip(("target", "budget", "defense", "attack", "recovery"), KEY, strict=True))
    return BaselineCell(**(names | {"seeds": (0, 1, 2, 3, 4), "clone_accuracy": OLD} | values))


def baseline(**values: Any) -> Baseline:
    return Baseline(suite="ci", protocol="2026.1", cells=(cell(**values),))


def verdicts(known: Baseline, records: list[Record]) -> dict[str, str]:
    return {line.metric: line.verdict for line in compare(known, [(KEY, each) for each in records], [KEY])}


@pytest.fixture
def reached(make_record: Any) -> Any:
    """Records of seeds that reached these clone accuracies."""

    def make(*accuracies: float, spent: int = 60_000) -> list[Record]:
        return [
            make_record(spec__seed=seed, stolen__clone_accuracy=accuracy, budget__spent=spent, curve=[])
            for seed, accuracy in enumerate(accuracies)
        ]

    return make


def test_the_threshold_is_a_prediction_interval() -> None:
    quantile = stats.t.ppf(1 - FALSE_ALARMS / (2 * 7), df=len(OLD) - 1)
    expected = quantile * np.std(OLD, ddof=1) * math.sqrt(1 / 3 + 1 / 5)
    assert cell().threshold(3, 7) == pytest.approx(expected, rel=1e-12)


def test_means_within_the_threshold_hold_and_others_do_not() -> None:
    limit, mean = cell().threshold(3, 1), sum(OLD) / 5
    assert cell().verdict(mean + 0.999 * limit, 3, 1) == "held"
    assert cell().verdict(mean - 0.999 * limit, 3, 1) == "held"
    assert cell().verdict(mean - 1.001 * limit, 3, 1) == "weaker"
    assert cell().verdict(mean + 1.001 * limit, 3, 1) == "stronger"
    assert cell(kl=OLD).verdict(2.0, 3, 1, "kl") == "weaker", "a larger distance from the target's answers"
    assert cell(label_entropy=OLD).verdict(2.0, 3, 1, "label_entropy") == "changed"


def test_seeds_that_agree_by_luck_do_not_make_a_threshold_of_nothing() -> None:
    assert cell(clone_accuracy=(0.97,) * 5).threshold(3, 1) > 0.002


def test_compare(reached: Any) -> None:
    assert verdicts(baseline(), reached(0.97, 0.96, 0.975)) == {"clone_accuracy": "held"}
    assert verdicts(baseline(), reached(0.90, 0.91, 0.90)) == {"clone_accuracy": "weaker"}
    assert verdicts(baseline(), reached(1.0, 1.0, 1.0)) == {"clone_accuracy": "stronger"}
    assert verdicts(baseline(), []) == {"clone_accuracy": "missing"}


def test_queries_are_compared_exactly(reached: Any) -> None:
    known = baseline(spent=60_000)
    assert verdicts(known, reached(0.97, 0.97))["queries"] == "held"
    assert verdicts(known, reached(0.97, 0.97, spent=59_999))["queries"] == "changed"


def test_a_cell_without_a_baseline_is_refused(reached: Any) -> None:
    other = ("digits/lenet5", 60_000, "none", "maze", "none")
    with pytest.raises(UsageError, match="maze against none on digits/lenet5 at 60,000 queries: make a new one"):
        compare(baseline(), [], [other])


def test_a_baseline_is_made_and_read_back(reached: Any, tmp_path: Path) -> None:
    records = [(KEY, record) for record in reversed(reached(0.97, 0.96, 0.98))]
    made = as_baseline("ci", "2026.1", records)
    assert made.cells[0].seeds == (0, 1, 2)
    assert made.cells[0].clone_accuracy == (0.97, 0.96, 0.98)
    assert made.cells[0].spent == 60_000
    assert all(len(made.cells[0].values(metric)) == 3 for metric in STRENGTH)
    path = tmp_path / "mine.json"
    path.write_text(dumps(made))
    assert load_baseline(str(path)) == made
    with pytest.raises(UsageError, match="two seeds"):
        as_baseline("ci", "2026.1", records[:1])


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


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_unchanged_tree_seldom_fails(path: Path) -> None:
    """New passes of three seeds a cell, 20,000 of them, drawn from the baseline's own: what is rare is among these."""
    known = load_baseline(str(path))
    assert all(len(each.seeds) >= 20 for each in known.cells)
    count = sum(bool(each.values(metric)) for each in known.cells for metric in STRENGTH)
    draw, passes = np.random.default_rng(0), 20_000
    failed = np.zeros(passes, dtype=bool)
    for each in known.cells:
        seeds = draw.integers(len(each.seeds), size=(passes, 3))
        for metric in STRENGTH:
            if each.values(metric):
                values = np.array(each.values(metric))
                failed |= abs(values[seeds].mean(axis=1) - values.mean()) > each.threshold(3, count, metric)
    assert failed.mean() <= FALSE_ALARMS


def test_other_weights_are_not_compared_with_those_of_the_baseline(reached: Any) -> None:
    records = reached(0.97, 0.97)
    mine = records[0].target.digest
    assert verdicts(baseline(digests=(mine,)), records)["clone_accuracy"] == "held"
    with pytest.raises(UsageError, match=r"attacked other weights .* make a new one with --update"):
        verdicts(baseline(digests=("cd" * 32,)), records)
    several = baseline(digests=("ab" * 32, "cd" * 32))  # each seed with a copy of its own, wherever it was trained
    assert verdicts(several, records)["clone_accuracy"] == "held"
