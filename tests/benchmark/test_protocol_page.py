"""The public protocol says what the code does: its version, its numbers, all that is measured, all flags, all caps."""

import re
from pathlib import Path

import pytest
from msbench import PROTOCOL
from msbench.benchmark import evaluation, reliability, traffic
from msbench.benchmark.metrics import ECE_BINS, milestones
from msbench.benchmark.transfer import STEPS
from msbench.leaderboard import flags
from msbench.leaderboard.board import DROP_CAPS, FAMILIES, L1_CAPS, SHOWN_FIRST
from msbench.leaderboard.record import Paid, Stolen
from msbench.leaderboard.scoring import RANK

PAGE = re.sub(r"\s+", " ", (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8"))
IN_WORDS = {6: "six", 10: "ten", 20: "twenty"}


def listed(values: tuple[float, ...], times: int = 1) -> str:
    return ", ".join(f"{times * value:g}" if times > 1 else f"{value:.1f}" for value in values)


@pytest.mark.parametrize(
    "sentence",
    [
        f"# The protocol, version {PROTOCOL} ",
        f"the first {evaluation.TRANSFER_IMAGES:,} test images that it gets right",
        f"BIM and PGD ({IN_WORDS[STEPS]} steps each)",
        f"at {IN_WORDS[len(milestones(60_000))]} milestones",
        f"the last {traffic.KEPT} queries from the nearest of {evaluation.NEAREST_IMAGES:,} test images",
        f"a sample of {traffic.SAMPLED // 2} to {traffic.SAMPLED} of the attack's queries",
        f"in batches of {reliability.CROWD:,} images",
        f"in one of {reliability.CROWD:,}",
        f"over {ECE_BINS} equal bins",
        f"a shifted copy of {reliability.SHIFTED_IMAGES:,} test images",
        f"at batches of 1 and 256: the quickest of {evaluation.REPEATS}",
        f"{reliability.PROBES} test images and {reliability.PROBES} of uniform noise",
        f"is more than {reliability.MATERIAL} and {IN_WORDS[int(reliability.ROUNDING)]} times what rounding does",
        f"differ on average by more than {reliability.MATERIAL} and",
        f" {IN_WORDS[int(flags.STANDARD_ERRORS)]} standard errors",
        f"{reliability.COPIED_IMAGES} test images and their usual shifted copies",
        f"more than {100 * flags.SHIFT_COST:g} points more",
        f"at most {reliability.HONEST_QUERIES:,} |",
        f"accuracy lost ({listed(DROP_CAPS, 100)} points) and on the mean L1 distance ({listed(L1_CAPS)})",
        f"The tier shown first is {100 * SHOWN_FIRST[0]:g} point and {SHOWN_FIRST[1]}",
        f"**Rank**: {RANK}.",
        f"its own ranking: {', '.join(FAMILIES[1:])}.",
    ],
)
def test_says(sentence: str) -> None:
    assert sentence in PAGE


def test_lists_every_flag_once() -> None:
    assert flags.DRIFT == 0.01, "by more than one point"
    table = PAGE.partition("| flag | what was tried |")[2].partition(" ## ")[0]
    assert sorted(re.findall(r"\| ([^|]+) \| [^|]+ \|", table.replace("| |", "|\n|"))[1:]) == sorted(flags.ALL)


@pytest.mark.parametrize("name", [*Stolen.model_fields, *Paid.model_fields])
def test_says_what_is_measured(name: str) -> None:
    assert f"`{name}`" in PAGE.replace("`…_before`", "`defended_accuracy_before`")
