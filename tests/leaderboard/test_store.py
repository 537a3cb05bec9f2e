import json
import os
import re
import warnings
from pathlib import Path

import pytest
from msbench.errors import StoreError
from msbench.leaderboard.record import SpecInfo, run_id
from msbench.leaderboard.store import Store, dumps, load, loads, record_files, relative_path

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def changed(record, **changes):
    data = json.loads(dumps(record))
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = data
        for section in sections:
            place = place[section]
        place[key] = value
    return json.dumps(data)


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
def test_golden_record_of_every_version_survives_byte_for_byte(version):
    text = (GOLDEN / f"record-v{version}.json").read_text(encoding="utf-8")
    record = loads(text)
    assert record.schema_version == version
    assert dumps(record) == text


def test_what_an_earlier_version_did_not_know_is_null():
    old = load(GOLDEN / "record-v2.json")
    assert (old.paid.flagged, old.paid.refused, old.diagnostics.detection) == (None, None, None)
    assert load(GOLDEN / "record-v3.json").paid.shifted is None
    assert load(GOLDEN / "record-v4.json").env.arithmetic is None
    assert load(GOLDEN / "record-v5.json").diagnostics.auxiliary == []


def test_canonical_text_is_sorted_indented_and_ends_with_one_newline(make_record):
    text = dumps(make_record())
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_id": "0" * 12}, "run_id 000000000000 is not the hash of the spec"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"stolen__surprise": 1}, "stolen.surprise: Extra inputs"),
        ({"stolen__kl": float("nan")}, "stolen.kl: "),
        ({"stolen__agreement": 1.01}, "stolen.agreement: "),
        ({"stolen__agreement": "0.79"}, "stolen.agreement: Input should be a valid number"),
        ({"spec__attack__params": {"lr": [float("inf")]}}, "spec.attack.params: inf is not a JSON number"),
        ({"schema_version": 7}, "schema_version: "),
        ({"protocol": "2020.1"}, "protocol 2020.1 is not spec.protocol"),
        ({"budget__spent": 60_001}, "spent 60001 queries"),
        ({"paid": None}, "done needs target, stolen and paid"),
        ({"paid__shifted": None}, "paid.shifted is missing"),
        ({"env__arithmetic": None}, "env.arithmetic is missing"),
        ({"paid__l1_queries": None}, "paid.l1_queries is missing"),
        ({"timing__latency_ratio": {"256": 1.0}}, "timing.latency_ratio at 1 and 256 is missing"),
    ],
)
def test_invalid_text_is_refused_with_the_first_reason(make_record, changes, reason):
    with pytest.raises(StoreError) as caught:
        loads(changed(make_record(), **changes))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_text_is_refused(make_record):
    with pytest.raises(StoreError, match="Invalid JSON"):
        loads(dumps(make_record())[:200])


def test_what_json_cannot_say_is_refused(make_record):
    record = make_record()
    record.spec.attack.params["hook"] = object()
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        dumps(record)


def test_saved_record_is_found_again(store, make_record):
    record = make_record(flags=["ünïcode"])
    path = store.save(record)
    assert path == store.path_of(record)
    assert path.read_text(encoding="utf-8") == dumps(record)
    assert store.find(record.run_id) == store.get(record.spec) == record
    assert list(store.records()) == [record]


def test_absent_record_is_none(store, make_record):
    record = make_record()
    assert store.find(record.run_id) is None
    assert store.get(record.spec) is None
    assert list(store.records()) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"target": {"name": "imagefolder:/data/my cats/resnet18", "version": "1", "params": {}}},
        {"target": {"name": "lonely", "version": "1", "params": {}}},
        {"defense": {"name": "topk+rounding", "version": "1+1", "params": {"0.k": 3, "1.decimals": 2}}},
        {"defense": {"name": "../../../etc:passwd", "version": "1", "params": {}}},
        {"defense": {"name": "my_plugin.py:MyDefense", "version": "1+0a1b2c3d", "params": {}}},
        {"attack": {"name": ".hidden", "version": "1", "params": {}}},
        {"attack": {"name": "Übergröße" * 40, "version": "1", "params": {}}},
        {"recovery": {"name": "???", "version": "1", "params": {}}},
    ],
)
def test_odd_names_make_plain_paths(store, make_record, odd):
    record = make_record(**{f"spec__{kind}": value for kind, value in odd.items()})
    path = store.save(record)
    parts = path.relative_to(store.root).parts
    assert len(parts) == 5
    assert all(part.strip(".") and not part.startswith(".") and len(part) < 130 for part in parts)
    assert all(char.isascii() and (char.isalnum() or char in "._+-") for part in parts for char in part)
    assert path.name.endswith(f"-{record.run_id}.json")
    assert list(store.records()) == [record]


def test_names_that_look_alike_on_disk_do_not_collide(store, make_record):
    records = [make_record(spec__defense=name) for name in ("a b", "a?b", "a_b")]
    assert len({store.save(record) for record in records}) == 3
    assert all(store.find(record.run_id) == record for record in records)


def test_saving_again_replaces(store, make_record):
    store.save(make_record(status="interrupted"))
    store.save(make_record(stolen__agreement=0.5))
    store.save(make_record(stolen__agreement=0.6))
    (record,) = store.records()
    assert record.status == "done"
    assert record.stolen.agreement == 0.6


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_finished_record_outlives_a_failed_repetition(store, make_record, status):
    done = make_record()
    assert store.save(done) == store.save(make_record(status=status))
    assert store.find(done.run_id) == done


def test_of_two_copies_the_newest_finished_is_found(store, make_record):
    old, new = make_record(), make_record(timing__created_utc="2026-02-01T00:00:00+00:00")
    failed = make_record(status="failed", timing__created_utc="2026-03-01T00:00:00+00:00")
    for folder, record in {"a": new, "b": failed, "c": old}.items():
        path = store.root / folder / relative_path(record.spec).name
        path.parent.mkdir(parents=True)
        path.write_text(dumps(record))
    assert store.find(old.run_id) == new


def test_unreadable_files_are_skipped_with_one_warning_each(store, make_record):
    good = [make_record(spec__seed=seed) for seed in range(3)]
    paths = [store.save(record) for record in good]
    (paths[0].parent / "none-s7-truncated.json").write_text('{"schema_version": 2,')
    (paths[0].parent / "none-s8-future.json").write_text(changed(good[0], schema_version=7))
    (paths[0].parent / ".none-s9.json.x1.tmp").write_text("{")
    (paths[0].parent / ".hidden.json").write_text("{")
    store.state_path("0" * 12).parent.mkdir()
    store.state_path("0" * 12).with_suffix(".json").write_text("{")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert {record.run_id for record in store.records()} == {record.run_id for record in good}
    messages = sorted(str(each.message) for each in caught)
    assert len(messages) == 2
    assert "none-s7-truncated.json: Invalid JSON" in messages[0]
    assert "none-s8-future.json: schema_version: " in messages[1]


def test_another_run_s_record_in_its_place_is_a_warning_and_not_the_run_s(store, make_record):
    mine, other = make_record(), make_record(spec__attack="dualstudent:lr_student=0.003")
    path = store.path_of(mine)
    path.parent.mkdir(parents=True)
    path.write_text(dumps(other))
    told = f"{path}: holds run {other.run_id}, but is named after {mine.run_id}"
    for found in (lambda: store.get(mine.spec), lambda: store.find(mine.run_id)):
        with pytest.warns(UserWarning, match=re.escape(told)):
            assert found() is None
    assert list(store.records()) == [other]
    store.save(mine)
    assert store.get(mine.spec) == store.find(mine.run_id) == mine


def test_of_many_unreadable_files_ten_are_named_and_the_rest_counted(store, make_record):
    folder = store.save(make_record()).parent
    for number in range(25):
        (folder / f"none-s{number:02}-broken.json").write_text("{")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(store.records())) == 1
    *named, last = [str(each.message) for each in caught]
    assert [f"none-s{number:02}-broken" in message for number, message in enumerate(named)] == [True] * 10
    assert last == "skipped 15 more files that are no readable records"


def run_and_process(record):
    return record.run_id, os.getpid()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of torch's threads, which no reader of records uses
@pytest.mark.parametrize("batch", [1_000, 4])
def test_what_is_made_of_each_record_is_the_same_in_one_process_and_in_several(store, make_record, monkeypatch, batch):
    monkeypatch.setattr("msbench.leaderboard.store._BATCH", batch)
    paths = [store.save(make_record(spec__seed=seed)) for seed in range(9)]
    for number in range(12):
        (paths[0].parent / f"none-s{number:02}-broken.json").write_text("{")
    with warnings.catch_warnings(record=True) as alone:
        warnings.simplefilter("always", UserWarning)
        known = [record.run_id for record in store.records()]
    with warnings.catch_warnings(record=True) as together:
        warnings.simplefilter("always", UserWarning)
        found = list(store.each(run_and_process))
    assert [name for name, _ in found] == known
    assert [str(each.message) for each in together] == [str(each.message) for each in alone]
    assert ({process for _, process in found} == {os.getpid()}) == (batch == 1_000)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("batch", [1_000, 2])
def test_of_runs_that_are_asked_for_only_their_files_are_read(store, make_record, monkeypatch, batch):
    monkeypatch.setattr("msbench.leaderboard.store._BATCH", batch)
    records = [make_record(spec__seed=seed) for seed in range(5)]
    paths = list(map(store.save, records))
    paths[0].write_text("{")
    paths[1].write_text(paths[2].read_text())
    wanted = {record.run_id for record in records[1:4]}
    with pytest.warns(
        UserWarning, match=f"holds run {records[2].run_id}, but is named after {records[1].run_id}"
    ) as one:
        found = list(store.each(run_and_process, wanted))
    assert len(one) == 1
    assert {name for name, _ in found} == {records[2].run_id, records[3].run_id}


def test_failed_rename_leaves_the_old_record_and_no_other_file(store, make_record, monkeypatch):
    old = make_record(stolen__agreement=0.5)
    path = store.save(old)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="No space left"):
        store.save(make_record(stolen__agreement=0.6))
    assert load(path) == old
    assert [file for file in store.root.rglob("*") if file.is_file()] == [path]


def test_record_that_could_not_be_read_back_is_not_written(store, make_record):
    record = make_record()
    record.run_id = "0" * 12
    with pytest.raises(StoreError, match="not the hash of the spec"):
        store.save(record)
    assert list(record_files(store.root)) == []


def test_writable_folder_passes_and_stays_empty(store):
    store.check_writable()
    assert list(store.root.iterdir()) == []


def test_file_in_place_of_the_folder_is_refused(tmp_path, make_record):
    (tmp_path / "runs").write_text("")
    store = Store(tmp_path / "runs")
    with pytest.raises(StoreError, match="choose another with --store"):
        store.check_writable()
    with pytest.raises(StoreError, match="choose another folder"):
        store.save(make_record())


def test_load_names_the_file(tmp_path):
    with pytest.raises(StoreError, match=r"gone\.json: No such file"):
        load(tmp_path / "gone.json")


def test_states_lie_beside_the_records(store):
    assert store.state_path("0123456789ab") == store.root / ".states" / "0123456789ab.pt"
    assert store.state_path("0123456789ab", forced=True) == store.root / ".states" / "0123456789ab-forced.pt"


def test_path_follows_from_the_spec_alone(make_record):
    spec = make_record().spec
    again = SpecInfo.model_validate_json(spec.model_dump_json())
    name = f"none-s0-{run_id(spec)}.json"
    assert relative_path(again) == Path("digits", "lenet5", "topk", "dualstudent", name)
