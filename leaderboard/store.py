"""The store: a folder of records, one JSON file a run, and beside them the saved states of unfinished runs.

    ROOT/DATASET/ARCHITECTURE/DEFENSE/ATTACK/RECOVERY-sSEED-RUNID.json
    ROOT/.states/RUNID.pt, or RUNID-forced.pt; ROOT/.claims/RUNID; ROOT/.logs/RUNID.log

The folders are for people who browse; the run id alone identifies. Names are reduced to characters that every
file system takes, which may make two of them equal, so a path is unique only through the run id at its end. A
path follows from the spec, so a run can have only one place, and saving it again replaces what stood there.

There is no index and no lock: files are written atomically, and a reader walks the folder. Ten thousand
records take one to two seconds if used one by one, and less where several processes share the work; kept all in
memory, the garbage collector doubles that.
"""

import gc
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ..errors import StoreError
from ..files import write_atomically
from .record import Record, SpecInfo, run_id

STATES, CLAIMS, LOGS = WORKING = ".states", ".claims", ".logs"
"""Folders of a store for those who run: what is unfinished, who is at it, and what was said."""

_BATCH = 1_000
"""Files that one process reads at a time; fewer are not worth a process."""

_NAMED = 10
"""Unreadable files that are named each; a folder of another version has thousands."""


T = TypeVar("T")


def dumps(record: Record) -> str:
    """The canonical text of a record: sorted keys, two spaces, one newline at the end.

    Raises `StoreError` for a hyperparameter that JSON cannot say (an object, say).
    """
    try:
        data = record.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:  # pydantic's serialization errors are ValueErrors too
        raise StoreError(f"record {record.run_id} cannot be written as JSON: {error}") from error


def loads(text: str | bytes) -> Record:
    """Read and validate a record; a number written as text is refused like any other wrong type.

    Raises `StoreError` with the first thing that is wrong, in one line.
    """
    try:
        return Record.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise StoreError(_first_reason(error)) from error


def load(path: Path) -> Record:
    """Read one file. Raises `StoreError` that names the file and the first reason."""
    try:
        return loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error


def relative_path(spec: SpecInfo) -> Path:
    """Where the record of a spec stands below the store's root."""
    dataset, _, architecture = spec.target.name.rpartition("/")
    folders = map(_safe, (dataset, architecture, spec.defense.name, spec.attack.name))
    return Path(*folders) / f"{_safe(spec.recovery.name)}-s{spec.seed}-{run_id(spec)}.json"


def record_files(root: Path) -> Iterator[Path]:
    """Every record file below a folder, in sorted order; hidden and temporary files are none."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        here = Path(folder)
        for name in sorted(files):
            if name.endswith(".json") and not name.startswith("."):
                yield here / name


class Store:
    """Records in a folder. Nothing is created before the first write.

    Args:
        root: the folder; ``~`` is expanded.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def path_of(self, record: Record) -> Path:
        """Where a record stands, or would."""
        return self.root / relative_path(record.spec)

    def state_path(self, run_id: str, *, forced: bool = False) -> Path:
        """Where the state of an unfinished run is kept, so that the same command continues it.

        A forced run has a state of its own, for it starts over from any other.
        """
        return self.root / STATES / f"{run_id}{'-forced' if forced else ''}.pt"

    def check_writable(self) -> None:
        """Create the folder and try a file in it: better now than after hours of attack.

        Raises `StoreError` if it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root, prefix=".", suffix=".tmp"):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cannot write to {self.root}: {reason}; choose another with --store") from error

    def save(self, record: Record) -> Path:
        """Write a record, replacing the one of the same run, and return where that run's record stands.

        A finished record stays when the new one failed or was interrupted. Raises `StoreError` for a record
        that could not be read back, and for a folder that cannot be written.
        """
        text, path = dumps(record), self.path_of(record)
        loads(text)
        old = None if record.status == "done" else self.get(record.spec)
        if old is None or old.status != "done":
            write_atomically(path, text)
        return path

    def get(self, spec: SpecInfo) -> Record | None:
        """The record of a spec, or None if there is none that can be read. Nothing is searched for.

        What stands in its place but is another run's is a warning, and no record of this one.
        """
        path = self.root / relative_path(spec)
        return next(_readable([path], run_named(path)), None) if path.exists() else None

    def find(self, run_id: str) -> Record | None:
        """The record of a run, or None. Walks the folder, but reads only files named after the run.

        If a copy lies elsewhere in the folder, the newest finished one is taken. A file that is named after the run
        but holds another is a warning.
        """
        named = (path for path in record_files(self.root) if run_named(path) == run_id)
        return max(_readable(named, run_id), key=_precedence, default=None)

    def records(self) -> Iterator[Record]:
        """Every record, one by one in the order of paths; an unreadable one is a warning, never the end.

        The first ten are named, the rest counted.
        """
        return _readable(record_files(self.root))

    def each(self, work: Callable[[Record], T], runs: Container[str] | None = None) -> Iterator[T]:
        """What ``work`` makes of every record, in the order of `records` and with its warnings.

        Where there are thousands, every core takes some of them.

        Args:
            work: can be pickled, as what it makes can.
            runs: only files that are named after these are read, and one that holds another run is a warning.
        """
        files = [path for path in record_files(self.root) if runs is None or run_named(path) in runs]
        batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
        worked = partial(_worked, work, runs is not None)
        if len(batches) < 2:
            yield from _good(worked(files))
            return
        workers = min(len(batches), os.cpu_count() or 1)
        with ProcessPoolExecutor(workers, initializer=gc.disable) as pool:  # records have no cycles to be collected
            yield from _good(chain.from_iterable(pool.map(worked, batches)))


def run_named(path: Path) -> str:
    """The run that a record's file is named after."""
    return path.stem.rpartition("-")[2]


def _precedence(record: Record) -> tuple[bool, str]:
    return record.status == "done", record.timing.created_utc


def _readable(paths: Iterable[Path], run_id: str | None = None) -> Iterator[Record]:
    """The records in files: any, or those of one run."""
    return _good(_attempt(path, run_id) for path in paths)


def _attempt(path: Path, run_id: str | None = None) -> Record | StoreError:
    try:
        record = load(path)
        if run_id not in (None, record.run_id):
            raise StoreError(f"{path}: holds run {record.run_id}, but is named after {run_id}")
    except StoreError as error:
        return error
    return record


def _worked(work: Callable[[Record], T], as_named: bool, paths: Sequence[Path]) -> list[T | StoreError]:
    """What work makes of each record, and what is wrong with those that cannot be read or are not what they should."""
    found = (_attempt(path, run_named(path) if as_named else None) for path in paths)
    return [each if isinstance(each, StoreError) else work(each) for each in found]


def _good(found: Iterable[T | StoreError]) -> Iterator[T]:
    """What was found; what could not be read is a warning."""
    unreadable = 0
    for each in found:
        if not isinstance(each, StoreError):
            yield each
            continue
        unreadable += 1
        if unreadable <= _NAMED:
            warnings.warn(f"skipped {each}", stacklevel=2)
    if unreadable > _NAMED:
        warnings.warn(f"skipped {unreadable - _NAMED:,} more files that are no readable records", stacklevel=2)


def _first_reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def _safe(name: str) -> str:
    """A file name from any name: no separators, no hidden files, nothing a file system refuses for length."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:80].strip(".") or "_"
