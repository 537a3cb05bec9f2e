from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msbench.leaderboard.check import check_files
from msbench.leaderboard.consistency import key_of, of_budgets, of_clones
from msbench.leaderboard.contradictions import FLOORED, contradictions
from msbench.leaderboard.flags import FRAGILE
from msbench.leaderboard.store import Store, dumps, record_files

TRANSFER = {"epsilon": 0.3, "images": 987, "fgsm": 47 / 987, "bim": 40 / 987, "pgd": 60 / 987}
NOTHING_TO_TRANSFER = {"epsilon": 0.3, "images": 0, "fgsm": 0.0, "bim": 0.0, "pgd": 0.0}
SHIFTED = {"images": 1000, "undefended": 0.941, "defended": 0.94, "argmax_changed": 0.001, "l1": 0.1}
FRAGILE_COSTS = SHIFTED | {"defended": 0.7, "argmax_changed": 0.241}


def found(root):
    return [problem for _, problem in check_files(record_files(root), "2026.1")]


def test_what_the_store_writes_has_no_problem(tmp_path, make_record):
    store = Store(tmp_path)
    for status in ("done", "failed", "interrupted"):
        store.save(make_record(status=status, spec__defense=f"my {status}"))
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"protocol": "2020.1"}, "protocol 2020.1 is not 2026.1"),
        ({"timing__created_utc": "yesterday"}, "created_utc 'yesterday' is no UTC time"),
        ({"timing__created_utc": "2026-01-02T03:04:05"}, "is no UTC time"),
        ({"timing__created_utc": "2026-01-02T03:04:05+02:00"}, "is no UTC time"),
        ({"stolen__clone_accuracy": 0.1}, "its end is not stolen.clone_accuracy"),
        ({"target__num_classes": 7}, "does not have the target's 7 classes"),
        ({"budget__spent": 50_000}, "60000 queries, but only 50000 were spent"),
        ({"budget__spent": 50_000}, "label_histogram counts 60000 of 50000 queries"),
        ({"budget__spent": 50_000}, "stop is 'budget spent', but 50000 of 60000 queries were"),
        ({"stolen__agreement": 0.79}, "its end is not stolen.agreement"),
        ({"stolen__queries_to_half": 60_000}, "queries_to_half is 60000, the curve's is 15000"),
        ({"stolen__queries_to_90": 60_000}, "queries_to_90 is 60000, the curve's is None"),
        ({"stolen__area_under_curve": 0.5}, "area_under_curve is 0.5, the curve's is 0.644"),
        ({"stolen__agreement_released": 0.79012}, "stolen.agreement_released: no number of the 1000 test images"),
        ({"target__accuracy": 0.98}, "transfer.images 987 is not the number of test images that the target gets right"),
        ({"stolen__transfer": {"epsilon": 0.3, "images": 987, "fgsm": 0.41, "bim": 0.0, "pgd": 1.0}}, "transfer.fgsm"),
        ({"stolen__transfer": NOTHING_TO_TRANSFER}, "transfer.images is 0, but the target gets test images right"),
        (
            {"stolen__transfer": NOTHING_TO_TRANSFER | {"images": 1001}},
            "transfer.images is 1001, but no more than 1000 are used",
        ),
        ({"stolen__kl": 0.05}, "too small for an L1 of 0.43"),
        ({"stolen__agreement": 0.9}, "stolen: clone_accuracy and agreement are 0.112 apart, more than the 0.013"),
        ({"stolen__kl": 28.0}, "more than floored probabilities allow"),
        ({"paid__nll": 28.0}, "more than floored probabilities allow"),
        ({"paid__defended_accuracy": 0.9}, "changed by 0.087, but only 0 of the top classes did"),
        (
            {"paid__shifted": {"images": 1000, "undefended": 0.9, "defended": 0.94, "argmax_changed": 0.03, "l1": 0.1}},
            "shifted accuracy changed by 0.04, but only 0.03 of the top classes did",
        ),
        ({"paid__l1": {"mean": 0.3, "p95": 0.2, "max": 0.5}}, "l1 cannot have a mean of 0.3"),
        ({"paid__l1": {"mean": 0.001, "p95": 0.2, "max": 0.5}}, "l1 cannot have a mean of 0.001"),
        ({"paid__l1_queries": {"mean": 0.08, "p95": 0.6, "max": 0.5}}, "l1_queries cannot have"),
        (
            {"paid__argmax_changed": 0.1, "paid__l1": dict.fromkeys(("mean", "p95", "max"), 0.0)},
            "no answer was changed",
        ),
        ({"diagnostics__label_entropy": 2.0}, "label_entropy is 2, the histogram's is 2.302"),
        ({"diagnostics__detection": {"flagged": 3, "refused": 0, "first_flagged": None}}, "the first of them None"),
        ({"diagnostics__detection": {"flagged": 3, "refused": 0, "first_flagged": 59_999}}, "cannot be 59999 of 60000"),
        ({"diagnostics__detection": {"flagged": 60_001, "refused": 0, "first_flagged": 1}}, "more than the 60000"),
        (
            {"paid__flagged": 0.0},
            "paid: flagged and refused are there where diagnostics has detection, and nowhere else",
        ),
        ({"paid__flagged": 0.0, "paid__refused": 0.1}, "where diagnostics has detection, and nowhere else"),
        ({"flags": ["the best defense there is"]}, "flags: 'the best defense there is' is none that a run gives"),
        ({"paid__shifted": FRAGILE_COSTS}, f"flags: lacks {FRAGILE!r}, which its numbers call for"),
    ],
)
def test_contradictions_are_told(tmp_path, make_record, changes, problem):
    Store(tmp_path).save(make_record(**changes))
    assert [reason for reason in found(tmp_path) if problem in reason]


def measured(test_images, right, clone):
    """What is measured on a test set of that size: of it, the target gets so many right, and the clone."""
    transfer = {"epsilon": 0.3, "images": min(right, 1000), "fgsm": 0.0, "bim": 0.0, "pgd": 1.0}
    shares = {"clone_accuracy": clone / test_images, "agreement": clone / test_images}
    point = {"queries": 60_000, **shares, "defended_accuracy": right / test_images}
    return {
        "target__accuracy": right / test_images,
        "stolen__transfer": transfer,
        **{f"stolen__{name}": value for name, value in shares.items()},
        "stolen__agreement_released": clone / test_images,
        "stolen__queries_to_half": 60_000,
        "stolen__area_under_curve": clone / test_images,
        "curve": [point],
        "paid__defended_accuracy": right / test_images,
        "paid__defended_accuracy_before": right / test_images,
        "paid__argmax_changed": 1 - (test_images - 7) / test_images,
    }


@given(st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_of_any_test_set_are_no_contradiction_and_other_shares_of_a_small_one_are(make_record, data):
    images = data.draw(st.integers(360, 60_000))
    right = data.draw(st.integers(images // 2, images))
    clone = data.draw(st.integers(right // 2 + 1, right * 89 // 100))
    changes = measured(images, right, clone)
    assert list(contradictions(make_record(**changes))) == []
    if right >= 1000:  # how large the test set is cannot be told any more
        return
    edited = changes | {"stolen__agreement_released": (clone + 0.3) / images}
    assert [problem for problem in contradictions(make_record(**edited)) if "no number of" in problem]


def test_one_clone_cannot_have_two_seeds_and_one_target_not_two_accuracies(tmp_path, make_record):
    store = Store(tmp_path)
    store.save(make_record(spec__seed=0))
    store.save(make_record(spec__seed=0, spec__defense_seed=1))
    store.save(make_record(spec__seed=1, stolen__kl=0.62))
    assert found(tmp_path) == []
    store.save(make_record(spec__seed=2))
    (problem,) = found(tmp_path)
    assert "the clone of another seed" in problem
    changes = measured(1000, 980, 700)
    store.save(make_record(spec__seed=2, stolen__kl=0.63, **changes))
    (problem,) = found(tmp_path)
    assert "target.accuracy is 0.98, 0.987 in " in problem


@pytest.mark.parametrize(
    ("copied", "reason"),
    [
        ({"spec__seed": 1, "spec__defense": "topk:k=5"}, "the clone of another seed"),
        ({"spec__seed": 1, "target__digest": "cd" * 32}, "the clone of another seed"),
        ({"spec__attack": "dfme"}, "the clone of another attack"),
        (
            {"spec__attack": "dfme", "spec__recovery": "linear", "spec__defense": "rounding"},
            "the clone of another attack",
        ),
        ({"spec__attack": "dfme", "spec__recovery": "argmax"}, None),  # both may learn from labels
        ({"spec__attack": "dfme", "paid__nll": FLOORED * 0.013}, None),
        ({"spec__attack": "dfme", "stolen__transfer": TRANSFER}, None),
        ({"spec__attack": "dualstudent:lr_student=0.1"}, None),
        ({"spec__recovery": "linear"}, None),
        ({"spec__defense": "topk:k=5"}, None),
    ],
)
def test_a_record_copied_to_another_seed_or_attack_is_found(tmp_path, make_record, copied, reason):
    Store(tmp_path).save(make_record(spec__defense="a"))  # it comes first in the folder
    Store(tmp_path).save(make_record(**copied))
    assert [text.partition(", in ")[0] for text in found(tmp_path)] == [f"stolen: {reason}"] * (reason is not None)


def test_no_two_attacks_of_a_suite_are_one_where_answers_are_labels(make_record):
    records = [make_record(spec__recovery="argmax"), make_record(spec__recovery="argmax", spec__attack="dfme")]
    named, suites = {Path(each.run_id): each for each in records}, {key_of(each.spec.attack) for each in records}
    assert list(of_clones(named, set())) == []
    ((path, text),) = of_clones(named, suites)
    assert str(path) == records[1].run_id
    assert text.startswith(f"stolen: the clone of another attack, in {records[0].run_id}, ")


def test_clones_that_have_collapsed_onto_one_class_may_be_equally_far_away(tmp_path, make_record):
    Store(tmp_path).save(make_record(spec__seed=0))
    Store(tmp_path).save(make_record(spec__seed=1, stolen__transfer=TRANSFER))
    assert found(tmp_path) == []
    collapsed = measured(1000, 987, 190) | {"stolen__queries_to_half": None}
    for seed, attack in ((2, "dualstudent"), (3, "dualstudent"), (3, "dfme")):
        Store(tmp_path).save(make_record(spec__seed=seed, spec__attack=attack, **collapsed))
    assert found(tmp_path) == []


def test_an_attack_of_a_suite_spends_the_same_whatever_the_defense(make_record):
    def record(attack, spent, **changes):
        less = {"budget__spent": spent, "budget__stop": "the pool's images are all queried"} if spent < 60_000 else {}
        return make_record(spec__attack=attack, **less, **changes)

    def told(attack, spent, known=("a",)):
        others = [record("a", 60_000, spec__defense=f"d{i}", spec__seed=i) for i in range(3)]
        named = {Path(each.run_id): each for each in (record(attack, spent), *others)}
        return [text for _, text in of_budgets(named, {key_of(make_record(spec__attack=a).spec.attack) for a in known})]

    assert told("a", 60_000) == []
    (text,) = told("a", 50_000)
    assert text.startswith("budget: the same attack spent otherwise: budget.spent is 50000, 60000 in ")
    assert told("b", 50_000, ("a", "b")) == []
    assert told("a", 50_000, ()) == []  # one that somebody submits may stop when it likes


def test_an_attack_of_a_suite_is_measured_at_the_same_milestones_whatever_the_defense(make_record):
    records = [make_record(spec__defense=f"d{i}", spec__seed=i) for i in range(4)]
    named = {Path(each.run_id): each for each in records}
    assert list(of_budgets(named, {key_of(records[0].spec.attack)})) == []
    path = Path(records[1].run_id)
    named[path] = records[1].model_copy(update={"curve": records[1].curve[-1:]})
    ((where, text),) = of_budgets(named, {key_of(records[0].spec.attack)})
    assert where == path
    assert text.startswith("curve: the same attack was measured otherwise: at [] queries, at [")


def shifted(**changes):
    return {"paid__shifted": SHIFTED | changes}


ONE_IMAGE = shifted(undefended=0.942, argmax_changed=0.002)
ELSEWHERE = {"env__arithmetic": "0123456789ab"}
ALL_IMAGES = {"stolen__transfer": {"epsilon": 0.3, "images": 1000, "fgsm": 0.4, "bim": 0.5, "pgd": 0.6}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (shifted(undefended=0.631, defended=0.631), "paid.shifted.undefended is 0.631, 0.941 in "),
        (shifted(images=500, undefended=0.942, argmax_changed=0.002), "paid.shifted.images is 500, 1000 in "),
        (ALL_IMAGES, "stolen.transfer.images is 1000, 987 in "),
        (ALL_IMAGES | ELSEWHERE, "stolen.transfer.images is 1000, 987 in "),
        (ONE_IMAGE, "paid.shifted.undefended is 0.942, 0.941 in "),
        (ONE_IMAGE | ELSEWHERE, None),  # rounding decides otherwise for one image
    ],
)
def test_the_undefended_target_is_the_same_for_all_runs_of_the_same_weights(tmp_path, make_record, changes, reason):
    store = Store(tmp_path)
    paths = [store.save(make_record(spec__seed=seed, stolen__kl=0.61 + seed / 100)) for seed in range(3)]
    # It comes first in its folder: which is the odd one does not depend on the order.
    odd = store.save(make_record(spec__attack="a", stolen__kl=0.7, **changes))
    assert next(iter(record_files(tmp_path))) == odd
    told = list(check_files(record_files(tmp_path), "2026.1"))
    if reason is None:
        assert told == []
        return
    ((path, text),) = told
    assert path == odd
    assert text.startswith(f"target: the same weights were measured otherwise: {reason}")
    assert any(str(each) in text for each in paths)
    odd.unlink()
    store.save(make_record(spec__attack="a", stolen__kl=0.7, target__digest="cd" * 32, **changes))
    assert found(tmp_path) == []


def test_a_flag_that_follows_from_the_numbers_is_no_problem_where_it_stands(tmp_path, make_record):
    Store(tmp_path).save(make_record(paid__shifted=FRAGILE_COSTS, flags=[FRAGILE]))
    assert found(tmp_path) == []


def test_records_of_before_flags_were_sentences_keep_theirs(tmp_path, make_record):
    flags = ["defended accuracy moved by +2.00% during the attack"]
    Store(tmp_path).save(make_record(schema_version=3, flags=flags, paid__shifted=None))
    assert found(tmp_path) == []


def test_real_records_have_no_problem():
    folder = Path(__file__).parents[2] / "docs" / "records"
    assert list(check_files(record_files(folder), "2026.1")) == []


def test_curve_must_increase(tmp_path, make_record):
    record = make_record()
    record.curve.insert(1, record.curve[0])
    Store(tmp_path).save(record)
    assert found(tmp_path) == ["curve: queries do not increase"]


@pytest.mark.parametrize(
    ("queries", "problem"),
    [
        ((0, 60_000), "curve: a point at 0 queries, where no clone is measured"),
        ((60_000, 60_000), "curve: queries do not increase"),
    ],
)
def test_a_curve_without_an_area_is_told(tmp_path, make_record, queries, problem):
    points = [point.model_copy(update={"queries": q}) for point, q in zip(make_record().curve, queries, strict=True)]
    Store(tmp_path).save(make_record().model_copy(update={"curve": points}))
    assert found(tmp_path) == [problem]


def test_wrong_place_other_text_and_copies_are_told(tmp_path, make_record):
    record = make_record()
    path = Store(tmp_path).save(record)
    (tmp_path / "copy.json").write_text(dumps(record).replace("  ", " "))
    problems = found(tmp_path)
    assert problems[0].startswith("stands in the wrong place: its content belongs in digits/lenet5/topk")
    assert problems[1].startswith("is not in canonical form")
    assert problems[2] == f"run {record.run_id} is already in {tmp_path / 'copy.json'}"
    assert path.is_file()


def test_invalid_file_has_one_problem_without_its_own_name(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (problem,) = found(tmp_path)
    assert problem.startswith("Invalid JSON")
