"""What a record must satisfy beyond its schema before it may stand on a leaderboard."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from ..errors import StoreError
from .record import Record
from .store import dumps, load, relative_path


def check_files(paths: Iterable[Path], protocol: str) -> Iterator[tuple[Path, str]]:
    """Every problem of the files, each with its file and in one line; nothing for a clean set.

    A file that is no valid record has one problem. Others are checked for their place, their text, their
    protocol, numbers that contradict each other, and a second file of the same run.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        try:
            record = load(path)
        except StoreError as error:
            yield path, str(error).removeprefix(f"{path}: ")
            continue
        yield from ((path, problem) for problem in problems(record, path, protocol))
        first = seen.setdefault(record.run_id, path)
        if first is not path:
            yield path, f"run {record.run_id} is already in {first}"


def problems(record: Record, path: Path, protocol: str) -> Iterator[str]:
    """What is wrong with a valid record that was read from a file."""
    place = relative_path(record.spec)
    if path.resolve().parts[-len(place.parts) :] != place.parts:
        yield f"stands in the wrong place: its content belongs in {place}"
    if path.read_text(encoding="utf-8") != dumps(record):
        yield "is not in canonical form (sorted keys, two spaces, one newline at the end)"
    if record.protocol != protocol:
        yield f"protocol {record.protocol} is not {protocol}"
    yield from _contradictions(record)


def _contradictions(record: Record) -> Iterator[str]:
    asked = [point.queries for point in record.curve]
    if asked != sorted(set(asked)):
        yield "curve: queries do not increase"
    if asked and asked[-1] > record.budget.spent:
        yield f"curve: {asked[-1]} queries, but only {record.budget.spent} were spent"
    at_end = [point for point in record.curve if point.queries == record.budget.spent]
    if record.stolen and any(point.clone_accuracy != record.stolen.clone_accuracy for point in at_end):
        yield "curve: its end is not stolen.clone_accuracy"
    classes = record.target.num_classes if record.target else 0
    if record.diagnostics and len(record.diagnostics.label_histogram) != classes:
        yield f"diagnostics: label_histogram does not have the target's {classes} classes"
    if not _is_utc(record.timing.created_utc):
        yield f"timing: created_utc {record.timing.created_utc!r} is no UTC time (2026-01-02T03:04:05+00:00)"


def _is_utc(text: str) -> bool:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError:
        return False
    return offset is not None and not offset
