"""What a record must satisfy beyond its schema before it may stand on a leaderboard."""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path

from ..errors import StoreError
from .consistency import of_budgets, of_clones, of_targets
from .contradictions import contradictions
from .leaves import leaves
from .record import Record
from .store import dumps, load, relative_path
from .texts import is_printable


def check_files(paths: Iterable[Path], protocol: str) -> Iterator[tuple[Path, str]]:
    """Every problem of the files, each with its file and in one line; nothing for a clean set.

    A file that is no valid record has one problem. Others are checked for their place, their text, their
    protocol, numbers that contradict each other or another record's, and a second file of the same run.
    """
    read: dict[Path, Record] = {}
    for path in paths:
        try:
            read[path] = load(path)
        except StoreError as error:
            yield path, str(error).removeprefix(f"{path}: ")
    yield from check_records(read, protocol)


def check_records(
    records: dict[Path, Record], protocol: str, attacks: Collection[str] = ()
) -> Iterator[tuple[Path, str]]:
    """The same for records that are read already.

    Args:
        attacks: those that `of_clones` and `of_budgets` know more of, which a suite's are.
    """
    runs: dict[str, Path] = {}
    for path, record in records.items():
        yield from ((path, problem) for problem in problems(record, path, protocol))
        first = runs.setdefault(record.run_id, path)
        if first is not path:
            yield path, f"run {record.run_id} is already in {first}"
    yield from of_targets(records)
    yield from of_clones(records, attacks)
    yield from of_budgets(records, attacks)


def problems(record: Record, path: Path, protocol: str) -> Iterator[str]:
    """What is wrong with a valid record that was read from a file."""
    place = relative_path(record.spec)
    if path.resolve().parts[-len(place.parts) :] != place.parts:
        yield f"stands in the wrong place: its content belongs in {place}"
    if path.read_text(encoding="utf-8") != dumps(record):
        yield "is not in canonical form (sorted keys, two spaces, one newline at the end)"
    if record.protocol != protocol:
        yield f"protocol {record.protocol} is not {protocol}"
    for name, value in leaves(record.model_dump(mode="json")).items():
        if not is_printable(f"{name}{value}"):
            yield f"{name!a}: only printable characters, all on one line"
    yield from contradictions(record)
    if not _is_utc(record.timing.created_utc):
        yield f"timing: created_utc {record.timing.created_utc!r} is no UTC time (2026-01-02T03:04:05+00:00)"


def _is_utc(text: str) -> bool:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError:
        return False
    return offset is not None and not offset
