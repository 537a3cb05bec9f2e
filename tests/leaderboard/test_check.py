import pytest
from msbench.leaderboard.check import check_files
from msbench.leaderboard.store import Store, dumps, record_files


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
    ],
)
def test_contradictions_are_told(tmp_path, make_record, changes, problem):
    Store(tmp_path).save(make_record(**changes))
    (reason,) = found(tmp_path)
    assert problem in reason


def test_curve_must_increase(tmp_path, make_record):
    record = make_record()
    record.curve.insert(1, record.curve[0])
    Store(tmp_path).save(record)
    assert found(tmp_path) == ["curve: queries do not increase"]


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
