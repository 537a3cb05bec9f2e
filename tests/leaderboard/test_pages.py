"""Pages from made-up records: what stands in a cell, and that nothing but plan and records decides it."""

import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from msbench.leaderboard.page_sections import TIMED_IN_TURNS, AttackRow, AttackSection, DefenseRow, DefenseSection
from msbench.leaderboard.pages import Page, Runs, Section, render
from msbench.leaderboard.record import Record
from msbench.leaderboard.texts import MISSING
from scipy.stats import t

Make = Callable[..., Record]
ACCURACIES = (0.90, 0.92, 0.97)


def by_id(*records: Record) -> dict[str, Record]:
    return {record.run_id: record for record in records}


def runs_of(*records: Record) -> Runs:
    spec = records[0].spec
    names = {"attack": spec.attack.name, "defense": spec.defense.name, "recovery": spec.recovery.name}
    return Runs(**names, specs=tuple(record.spec for record in records))


def page_of(*sections: Section) -> Page:
    return Page(title="Title", text="Text.", command="msbench study attacks", sections=sections)


def attacks(*rows: AttackRow) -> Page:
    return page_of(AttackSection(name="s", title="Section", text="", rows=rows))


def rows_of(text: str, start: str) -> list[dict[str, str]]:
    """The rows of the page's tables whose first cell begins so, each by header."""
    found, header = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
        elif cells[0].startswith(start):
            found.append(dict(zip(header, cells, strict=True)))
    return found


@pytest.fixture
def seeds(make_record: Make) -> list[Record]:
    """Three runs of one cell, undefended."""
    return [
        make_record(
            spec__seed=seed,
            spec__defense="none",
            stolen__clone_accuracy=accuracy,
            stolen__agreement=accuracy - 0.1,
            timing__attack=9.0 * seed,
            timing__evaluation=1.0 * seed,
        )
        for seed, accuracy in enumerate(ACCURACIES)
    ]


# ---------------------------------------------------------------------------------------------------- attacks


def test_a_row_has_mean_interval_lowest_seed_and_time(seeds: list[Record]) -> None:
    (row,) = rows_of(render(attacks(AttackRow(runs=runs_of(*seeds), published="91 % (x)")), by_id(*seeds)), "dual")
    half = t.ppf(0.975, 2) * statistics.stdev(ACCURACIES) / 3**0.5
    assert row == {
        "attack": "dualstudent",
        "clone accuracy %": f"93.0 ± {100 * half:.1f}",
        "lowest seed": "90.0",
        "agreement %": f"83.0 ± {100 * half:.1f}",
        "n": "3",
        "run, s": "10.0",
        "published elsewhere": "91 % (x)",
    }


def test_what_is_not_done_is_missing_unfinished_or_failed_and_never_counts(
    make_record: Make, seeds: list[Record]
) -> None:
    text = render(attacks(AttackRow(runs=runs_of(*seeds))), by_id(seeds[1]))
    (row,) = rows_of(text, "dual")
    assert (row["clone accuracy %"], row["n"]) == ("92.0", "1 of 3")
    for status, shown in (("interrupted", "unfinished"), ("failed", "failed")):
        stopped = make_record(spec__defense="none", status=status)
        text = render(attacks(AttackRow(runs=runs_of(*seeds))), by_id(stopped))
        (row,) = rows_of(text, "dual")
        assert (row["clone accuracy %"], row["n"], row["agreement %"]) == (shown, "0 of 3", MISSING)
    assert f"dualstudent: seed 0 failed with ContractViolation (run {stopped.run_id})" in text
    (row,) = rows_of(render(attacks(AttackRow(runs=runs_of(*seeds))), {}), "dual")
    assert (row["clone accuracy %"], row["n"]) == ("missing", "0 of 3")


def test_only_the_runs_that_are_asked_for_count(make_record: Make, seeds: list[Record]) -> None:
    """Records of other hyperparameters are another attack's."""
    others = [make_record(spec__defense="none", spec__attack="dualstudent:lr_student=0.1", stolen__clone_accuracy=1.0)]
    page = attacks(AttackRow(runs=runs_of(*seeds)))
    assert render(page, by_id(*seeds, *others)) == render(page, by_id(*seeds))


def test_the_same_records_make_the_same_bytes_in_any_order(make_record: Make, seeds: list[Record]) -> None:
    fast = [make_record(spec__seed=seed, env__device="NVIDIA H100", timing__attack=0.1 + seed) for seed in range(3)]
    page = attacks(AttackRow(runs=runs_of(*seeds)), AttackRow(runs=runs_of(*fast)))
    records = [*seeds, *fast]
    texts = set()
    for seed in range(5):
        random.Random(seed).shuffle(records)
        texts.add(render(page, by_id(*records)))
    assert len(texts) == 1


def test_times_of_different_machines_stand_apart(make_record: Make, seeds: list[Record]) -> None:
    seeds[2] = seeds[2].model_copy(update={"env": seeds[2].env.model_copy(update={"device": "NVIDIA H100"})})
    text = render(attacks(AttackRow(runs=runs_of(*seeds))), by_id(*seeds))
    (row,) = rows_of(text, "dual")
    assert row["run, s"] == "20.0 (NVIDIA H100, 2 threads), 5.0 (cpu, 2 threads)"
    assert "Machines: NVIDIA H100, 2 threads, Linux-x86_64 (1 runs); cpu, 2 threads, Linux-x86_64 (2 runs)." in text
    assert "Versions: msbench 0.1.0, Python 3.11.9, torch 2.8.0, timm 1.0.20." in text


def test_columns_tell_rows_apart_and_no_more(make_record: Make, seeds: list[Record]) -> None:
    defended = make_record(spec__recovery="argmax", spec__budget=1000)
    text = render(attacks(AttackRow(runs=runs_of(*seeds)), AttackRow(runs=runs_of(defended))), by_id(*seeds))
    told = [(row["queries"], row["defense"], row["recovery"]) for row in rows_of(text, "dual")]
    assert told == [("60,000", "none", "none"), ("1,000", "topk", "argmax")]


def test_a_reader_is_told_what_else_matters(make_record: Make) -> None:
    bound = make_record(spec__recovery="oracle_bayes", budget__spent=6_400, budget__stop="six rounds", flags=["odd"])
    other = make_record(spec__seed=1, spec__recovery="oracle_bayes", target__digest="cd" * 32, target__accuracy=0.98)
    text = render(attacks(AttackRow(runs=runs_of(bound, other), note="What was tried.")), by_id(bound, other))
    assert "- dualstudent + oracle_bayes: peeks at clean answers: an upper bound, never ranked\n" in text
    assert "- dualstudent + oracle_bayes against topk: 6,400 of 60,000 queries were spent (six rounds)\n" in text
    assert "- dualstudent + oracle_bayes against topk: flag: odd\n" in text
    assert "- Undefended accuracy of digits/lenet5: 98.0 to 98.7 %.\n" in text
    alone = render(attacks(AttackRow(runs=runs_of(bound))), by_id(bound))
    assert f"- Undefended accuracy of digits/lenet5: 98.7 %, of the weights {bound.target.digest[:8]}.\n" in alone
    assert "digits/lenet5 was trained 2 times" in text
    assert f"1 of 2 runs attacked the weights {min(bound.target.digest, 'cd' * 32)[:8]}, these others: " in text
    assert "these others: dualstudent + oracle_bayes against topk (1 of 2 runs).\n" in text
    assert "- dualstudent + oracle_bayes: What was tried.\n" in text


def test_a_reader_is_told_of_defenses_that_several_kinds_of_processors_trained(make_record: Make) -> None:
    here, there = (make_record(spec__seed=i, env__arithmetic=f"{i:012x}") for i in range(2))
    told = "Runs of these were on several, in one row or from one setting to the next: topk."
    for learns, records in ((True, (here, there)), (True, (here,)), (False, (here, there))):
        asked = replace(runs_of(here, there), learns=learns)
        text = render(attacks(AttackRow(runs=asked)), by_id(*records))
        assert (told in text) == (learns and len(records) == 2)


# --------------------------------------------------------------------------------------------------- defenses


def defended(make_record: Make, accuracy: float, **changes: Any) -> Record:
    return make_record(stolen__clone_accuracy=accuracy, target__accuracy=0.9, **changes)


def defenses(*rows: DefenseRow) -> Page:
    headers = list(dict.fromkeys(header for row in rows for header in row.columns))
    return page_of(DefenseSection(name="s", title="Section", text="", headers=headers, rows=rows))


def row_of(family: str = "deterministic", recovery: str = "", defense: str = "topk:k=3", **columns: Runs) -> DefenseRow:
    return DefenseRow(defense=defense, family=family, recovery=recovery, columns=columns)


def test_the_worst_case_is_the_largest_share_that_is_ranked(make_record: Make) -> None:
    weak = [defended(make_record, share, spec__attack="dfme", spec__seed=i) for i, share in enumerate((0.49, 0.51))]
    strong = [
        defended(make_record, share, spec__recovery="argmax", spec__seed=i) for i, share in enumerate((0.8, 0.84))
    ]
    bound = [defended(make_record, 0.89, spec__recovery="oracle_bayes")]
    page = defenses(row_of(dfme=runs_of(*weak), ours=runs_of(*strong), bound=runs_of(*bound)))
    cost, stolen = rows_of(render(page, by_id(*weak, *strong, *bound)), "topk")
    mean, half = (0.82 - 0.1) / 0.8, t.ppf(0.975, 1) * statistics.stdev((0.8, 0.84)) / 2**0.5 / 0.8
    assert cost["worst case: stolen share"] == f"{mean:.2f} ± {half:.2f} ours"
    assert (stolen["bound"], stolen["dfme"][:4], cost["runs"]) == ("89.0", "50.0", "5 of 5")
    assert stolen["defense"] == "topk:k=3"
    cost, stolen = rows_of(render(page, by_id(*weak)), "topk")
    assert cost["worst case: stolen share"].startswith("≥ 0.50")
    assert (stolen["ours"], cost["runs"]) == ("missing", "2 of 5")


def test_a_share_of_some_seeds_bounds_nothing(make_record: Make) -> None:
    lucky, rest = (
        [defended(make_record, share, spec__attack="dfme", spec__seed=i) for i, share in seeds]
        for seeds in ([(0, 0.82)], [(1, 0.5), (2, 0.5)])
    )
    weak = [defended(make_record, 0.4, spec__seed=i) for i in range(3)]
    page = defenses(row_of(dfme=runs_of(*lucky, *rest), ours=runs_of(*weak)))
    cost, _ = rows_of(render(page, by_id(*lucky, *weak)), "topk")
    assert cost["worst case: stolen share"] == "0.90 (n=1) dfme"
    cost, _ = rows_of(render(page, by_id(*lucky, *rest, *weak)), "topk")
    assert cost["worst case: stolen share"].startswith("0.63 ± ")


def test_costs_are_the_worst_of_the_cells_means(make_record: Make) -> None:
    """Two cells: the means are 0.95 and 0.90, and neither the least of all (0.88) nor the mean of all counts."""
    one = [
        make_record(spec__seed=i, paid__defended_accuracy=a, paid__nll=a, timing__created_utc=TIMED_IN_TURNS)
        for i, a in enumerate((0.94, 0.96))
    ]
    distances = [{"mean": 0.1 + i, "p95": 0.2, "max": 0.3 + i} for i in range(2)]
    two = [
        make_record(
            spec__seed=i,
            spec__attack="dfme",
            paid__defended_accuracy=a,
            paid__nll=a,
            paid__l1=distances[i],
            timing__latency_ratio={"1": 1.0 + i, "256": 3.0},
            timing__created_utc=TIMED_IN_TURNS,
        )
        for i, a in enumerate((0.88, 0.92))
    ]
    page = defenses(row_of(one=runs_of(*one), two=runs_of(*two)))
    cost, _ = rows_of(render(page, by_id(*one, *two)), "topk")
    assert (cost["accuracy %"], cost["NLL"], cost["L1 mean"], cost["L1 max"]) == ("90.0", "0.950", "0.600", "1.300")
    assert (cost["latency ratio at 1"], cost["latency ratio at 256"]) == ("1.02", "2.05")


def test_latency_ratios_from_before_they_were_timed_in_turns_do_not_count(make_record: Make) -> None:
    old = make_record(timing__latency_ratio={"1": 9.0, "256": 9.0}, timing__created_utc="2026-11-29T22:07:59+00:00")
    new = make_record(
        spec__seed=1, timing__latency_ratio={"1": 1.5, "256": 1.25}, timing__created_utc="2026-11-29T22:08:00+00:00"
    )
    page = defenses(row_of(one=runs_of(old, new)))
    for records, shown in ((by_id(old, new), ("1.50", "1.25")), (by_id(old), (MISSING, MISSING))):
        cost, _ = rows_of(render(page, records), "topk")
        assert (cost["latency ratio at 1"], cost["latency ratio at 256"]) == shown


def test_one_attack_has_no_worst_case(make_record: Make) -> None:
    record = make_record()
    text = render(defenses(row_of(one=runs_of(record))), by_id(record))
    assert "worst case" not in text
    assert rows_of(text, "topk")[0]["stolen share"].endswith(" one")


def test_families_have_tables_of_their_own(make_record: Make) -> None:
    noise, topk = make_record(spec__defense="noise:scale=0.1"), make_record()
    rows = (row_of(a=runs_of(topk)), row_of("randomized", "averaging", "noise", b=runs_of(noise)))
    text = render(defenses(*rows), by_id(noise))
    assert text.index("**Deterministic: what it costs") < text.index("| topk") < text.index("**Randomized: what")
    _, stolen = rows_of(text, "noise")
    assert (stolen["a"], stolen["b"], stolen["its own recovery"]) == (MISSING, "78.8", "averaging")
    cost, stolen = rows_of(text, "topk")
    assert (cost["worst case: stolen share"], stolen["a"], stolen["b"]) == ("missing", "missing", MISSING)
