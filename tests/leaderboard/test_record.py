import json
import subprocess
import sys
from pathlib import Path

import msbench.leaderboard.record
import pytest
from msbench.leaderboard.record import SCHEMA_VERSION, schema_text
from pydantic import ValidationError

_IMPORT_ALL = """
import sys
from msbench.leaderboard import check, report, scoring, store
allowed = ("msbench.errors", "msbench.files", "msbench.components", "msbench.leaderboard")
print([name for name in sys.modules
       if name == "torch" or (name.startswith("msbench.") and not name.startswith(allowed))])
"""


def test_schema_file_is_current():
    folder = Path(msbench.leaderboard.record.__file__).parent
    committed = (folder / "schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "run: msbench leaderboard schema > leaderboard/schema.json"


def test_schema_is_sorted_and_refuses_unknown_keys():
    schema = json.loads(schema_text())
    assert list(schema) == sorted(schema)
    assert schema["additionalProperties"] is False


def test_leaderboard_needs_neither_torch_nor_the_rest_of_the_package():
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [1, (float("-inf"),)]}])
def test_parameters_must_be_finite_at_any_depth(make_record, value):
    with pytest.raises(ValidationError, match="not a JSON number"):
        make_record(spec__attack={"name": "a", "version": "1", "params": {"x": value}})


def test_failed_record_needs_its_error(make_record):
    with pytest.raises(ValidationError, match="needs error"):
        make_record(status="failed", error=None)


@pytest.mark.parametrize(
    ("missing", "since"), [({"paid__shifted": None}, 4), ({"env__arithmetic": None}, 5)], ids=["shifted", "arithmetic"]
)
def test_what_every_run_measures_is_missing_only_before_it_was_measured(make_record, missing, since):
    (place,) = missing
    assert make_record(schema_version=since - 1, **missing).status == "done"
    for version in range(since, SCHEMA_VERSION + 1):
        with pytest.raises(
            ValidationError, match=f"{place.replace('__', '.')} is missing.* since schema version {since}"
        ):
            make_record(schema_version=version, **missing)


def test_a_gpu_has_no_arithmetic_and_a_failed_run_no_measurement(make_record):
    assert make_record(env__device="NVIDIA H200", env__arithmetic=None).env.arithmetic is None
    assert make_record(status="failed", env__arithmetic=None).paid is None
