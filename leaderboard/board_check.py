"""What a whole board must satisfy: the checks that run on every pull request.

A board is a folder with ``entries`` and ``results``; the frozen suites and baselines are those of this msbench. Beside
what each record must satisfy by itself (see `check`), every record must be a run that a suite or an entry asks for,
every entry must have its records, and what was committed stays as it was. No code of an entry is needed or run.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import StoreError, UsageError
from . import suites
from .baseline import find_baseline
from .board import gate_text, make_board, worst_share
from .check import check_records
from .consistency import Declared, key_of, of_declaration, of_defenses
from .entries import Submission, alone, left_out, misplaced, read_submission, with_columns, with_defenses
from .history import KEPT, Change
from .leaves import leaves
from .record import SCHEMA_VERSION, Record, SpecInfo, run_id
from .store import WORKING, load, loads, record_files
from .suites import DefenseEntry, FrozenSuite, load_suite
from .verification import cell_of, threshold

_EXPLAINED = 10
"""Records that nothing asks for of which is said what they should have been: to find that takes a second each."""
LARGEST = 1_000_000
"""Bytes of a file of a board; a record takes five thousand."""


@dataclass
class Findings:
    """What a check of a board came to."""

    problems: list[tuple[Path, str]] = field(default_factory=list)
    """Each with the file that it is about. None of them may be there."""
    notes: list[str] = field(default_factory=list)
    """What a reviewer should know."""
    records: int = 0
    submissions: dict[Path, Submission] = field(default_factory=dict)
    """The entries that can be used, each with its file."""

    @property
    def entries(self) -> int:
        """How many they are."""
        return len(self.submissions)


def check_board(board: Path, protocol: str, changes: Iterable[Change] = ()) -> Findings:
    """Check a board's folder, and what a pull request changes of it."""
    found = Findings()
    submitted = _submissions(board / "entries", protocol, found)
    records = _records(board / "results", found)
    declared = _declared(submitted.values())
    found.problems += check_records(records, protocol, _attacks())
    found.problems += of_defenses(records, declared)
    found.problems += ((path, problem) for path, each in records.items() for problem in _unfit(each, declared))
    _note_uncommitted(records, found)
    _check_runs(board, submitted, records, found)
    for suite in _suites():
        _check_scores(suite, submitted, list(records.values()), found)
    _check_changes(board, changes, records, found)
    found.records, found.submissions = len(records), submitted
    return found


# ---------------------------------------------------------------------------------------------------- reading


def _suites() -> list[FrozenSuite]:
    return [load_suite(name) for name in suites.names()]


def _attacks() -> set[str]:
    """The suites' own: none stops early because of what it is answered, and no two are variants of one."""
    columns = (column for suite in _suites() for table in suite.tables for column in table.columns)
    return {key_of(setting.attack) for column in columns for setting in column.settings}


def _submissions(folder: Path, protocol: str, found: Findings) -> dict[Path, Submission]:
    submitted: dict[Path, Submission] = {}
    for path in _files(folder, found):
        if path.suffix == ".json" and path.with_suffix(".toml").is_file():
            continue
        if path.suffix != ".toml" or path.parent != folder:
            found.problems.append((path, "is no entry: NAME.toml, and NAME.json beside it"))
            continue
        try:
            submission = read_submission(path)
            _check_suite(submission, protocol)
        except UsageError as error:
            found.problems.append((path, str(error).removeprefix(f"{path}: ")))
        else:
            submitted[path] = submission
    return submitted


def _check_suite(submission: Submission, protocol: str) -> None:
    entry = submission.entry
    suite = load_suite(entry.suite)
    if entry.protocol != protocol or suite.protocol != protocol:
        raise UsageError(f"protocol {entry.protocol} is not {protocol}")
    taken = {each.name for table in suite.tables for each in table.defenses}
    if entry.kind == "defense" and entry.name in taken:
        raise UsageError(f"the suite {suite.name} has a defense {entry.name!r} of its own: choose another name")
    for reason in misplaced(submission, suite):
        raise UsageError(reason)


def _records(folder: Path, found: Findings) -> dict[Path, Record]:
    records: dict[Path, Record] = {}
    known = set() if folder.is_symlink() else set(record_files(folder))
    for path in _files(folder, found):
        if path not in known:
            found.problems.append((path, "is no record"))
            continue
        try:
            records[path] = load(path)
        except StoreError as error:
            found.problems.append((path, str(error).removeprefix(f"{path}: ")))
    return records


def _files(folder: Path, found: Findings) -> Iterator[Path]:
    """All files but those of runs in progress; links, which may lead anywhere, and large files are problems."""
    if folder.is_symlink():
        found.problems.append((folder, "is a link"))
        return
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] in WORKING:
            continue
        if path.is_symlink():
            found.problems.append((path, "is a link"))
        elif path.is_file() and path.name != ".gitkeep":
            if path.stat().st_size > LARGEST:
                found.problems.append((path, f"is larger than {LARGEST:,} bytes"))
            else:
                yield path


def _unfit(record: Record, declared: Declared) -> Iterator[str]:
    if record.status != "done":
        yield f"is {record.status}: only runs that are done stand on a board"
        return
    if not record.curve or record.diagnostics is None:
        yield "has no curve or no diagnostics, which every run measures"
    if (entered := declared.get(key_of(record.spec.defense))) is not None:
        yield from of_declaration(record, entered)


def _declared(submitted: Iterable[Submission]) -> Declared:
    """What defenses declare, the suites' own before what was submitted."""
    own = [entry for suite in _suites() for table in suite.tables for entry in table.defenses]
    entered = [each.resolved for each in submitted if isinstance(each.resolved, DefenseEntry)]
    return {key_of(setting.resolved): (entry, setting) for entry in (*entered, *own) for setting in entry.settings}


def _note_uncommitted(records: Mapping[Path, Record], found: Findings) -> None:
    dirty = [record.run_id for record in records.values() if record.env.dirty]
    if dirty:
        some = f"{', '.join(dirty[:3])}{', …' if len(dirty) > 3 else ''}"
        found.notes.append(f"{len(dirty)} records are of code with changes that were not committed: {some}")


# ------------------------------------------------------------------------------------- what the board asks for


def runs_of(suite: FrozenSuite) -> dict[str, SpecInfo]:
    """Every run that a suite asks for, by identity."""
    specs = (
        table.spec(suite.protocol, column, entry, setting, seed)
        for table in suite.tables
        for column, entry, setting in table.cells()
        for seed in table.seeds
    )
    return {run_id(spec): spec for spec in specs}


def _check_runs(
    board: Path, submitted: Mapping[Path, Submission], records: Mapping[Path, Record], found: Findings
) -> None:
    """Every record is asked for, and every entry has what it asks for."""
    asked = {run: (suite.name, spec) for suite in _suites() for run, spec in runs_of(suite).items()}
    there = {record.run_id for record in records.values() if record.status == "done"}
    for path, submission in submitted.items():
        suite = load_suite(submission.entry.suite)
        runs, more = (
            runs_of(alone(suite, submission)),
            runs_of(alone(_others(suite, submission, submitted), submission)),
        )
        asked |= {run: (submission.entry.name, spec) for run, spec in more.items()}
        missing = runs.keys() - there
        _check_tables(path, submission, suite, found)
        if len(missing) == len(runs):
            found.problems.append((path, f"none of its {len(runs)} runs is in {board / 'results'}"))
        elif missing and not submission.entry.partial:
            some = ", ".join(sorted(missing)[:3])
            found.problems.append((path, f"{len(missing)} of its {len(runs)} runs are missing: {some}, …"))
        elif missing:
            found.notes.append(f"{submission.entry.name}: {len(missing)} of its {len(runs)} runs are missing")
    unexpected = [path for path, record in records.items() if record.run_id not in asked]
    for place, path in enumerate(unexpected):
        near = _nearest(records[path].spec, asked.values()) if place < _EXPLAINED else ""
        found.problems.append((path, f"is a run that no suite and no entry asks for{near}"))


def _check_tables(path: Path, submission: Submission, suite: FrozenSuite, found: Findings) -> None:
    """An attack that was run on some of the suite's targets is as incomplete as one that was run on some defenses."""
    lacking = "; ".join(left_out(submission, suite))
    if lacking and submission.entry.partial:
        found.notes.append(f"{submission.entry.name}: leaves out {lacking}")
    elif lacking:
        found.problems.append((path, f"leaves out {lacking}: run these too, or say partial = true"))


def _others(suite: FrozenSuite, submission: Submission, submitted: Mapping[Path, Submission]) -> FrozenSuite:
    """The suite with what else was submitted: an attack may be run against submitted defenses, too, but need not."""
    return suite if submission.entry.kind == "defense" else with_defenses(suite, submitted.values())


def _nearest(spec: SpecInfo, asked: Iterable[tuple[str, SpecInfo]]) -> str:
    """How a run that nothing asks for differs from the nearest one that is asked for."""
    mine = leaves(spec.model_dump(mode="json"))
    nearest, fewest = "", len(mine) + 1
    for where, other in asked:
        theirs = leaves(other.model_dump(mode="json"))
        differing = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
        if len(differing) < fewest:
            fewest = len(differing)
            told = (f"{key} is {mine.get(key)!r}, there {theirs.get(key)!r}" for key in sorted(differing)[:3])
            nearest = f"; the nearest, of {where}: {', '.join(told)}"
    return nearest


# ------------------------------------------------------------------------------------------------- the scores


def _check_scores(
    suite: FrozenSuite, submitted: Mapping[Path, Submission], records: list[Record], found: Findings
) -> None:
    """The gate of each suite of which there are runs, and what submitted attacks lower."""
    asked = runs_of(suite).keys()
    if any(record.run_id in asked for record in records):
        _check_gate(suite, records, found)
    everyone = with_defenses(suite, submitted.values())
    for each in submitted.values():
        if each.entry.kind == "attack" and each.entry.suite == suite.name:
            found.notes += attack_results(everyone, each, records)


def _check_gate(suite: FrozenSuite, records: list[Record], found: Findings) -> None:
    baseline = find_baseline(suite.name)
    if baseline is None:
        found.notes.append(f"suite {suite.name} has no baseline: its gate stays closed and nothing is ranked")
        return
    for table in make_board(suite, records, baseline).tables:
        for line in table.gate:
            if not line.holds and line.measured and line.reference and line.measured.n == len(table.seeds):
                where = f"suite {suite.name}, {table.target}, {table.budget:,} queries"
                text = f"{where}: {table.columns[line.column].label} is {gate_text(line, len(table.seeds))}"
                found.problems.append((suites.FOLDER / f"{suite.name}.json", text))


def attack_results(suite: FrozenSuite, submission: Submission, records: list[Record]) -> Iterator[str]:
    """What a submitted attack does to a suite's defenses: a line for each setting it was run against in full.

    The published score is that of the suite's own columns. It stays what it is until the attack is one of them.
    """
    published = make_board(suite, records, None).tables
    for before, table in zip(published, make_board(with_columns(suite, submission), records, None).tables, strict=True):
        own = len(before.columns)
        for old, row in zip(before.rows, table.rows, strict=True):
            done = [score for score in row.scores[own:] if score and score.sigma and score.n == len(table.seeds)]
            if not done:
                continue
            share, known = max(score.sigma.mean for score in done if score.sigma), worst_share(old)
            lowered = "LOWERED: " if known and old.complete and share > known.mean else ""
            told = "no published score"
            if known is not None:
                told = f"published {known.mean:.3f}" if old.complete else f"{known.mean:.3f} so far: runs are missing"
            where = f"{table.target}, {table.budget:,} queries"
            yield f"{lowered}{submission.entry.name} steals {share:.3f} of {row.setting} ({where}; {told})"


# ------------------------------------------------------------------------------------------------ the changes

_JUDGES = {"suites": "a frozen suite says which runs count", "baselines": "attacks are judged by it"}
"""The folders of what submissions are judged by, and bring none of."""
_MAINTAINED = "leave it out, and ask for it in an issue: maintainers make and merge it themselves"


def _check_changes(board: Path, changes: Iterable[Change], records: Mapping[Path, Record], found: Findings) -> None:
    weights = _weights()
    seeds: dict[str, dict[str, float]] = defaultdict(dict)
    for record in records.values():
        if record.stolen is not None:
            seeds[cell_of(record)][record.run_id] = record.stolen.clone_accuracy
    for change in changes:
        (kind, *below), added = change.path.relative_to(board).parts, records.get(change.path)
        if kind not in KEPT:
            found.notes.append(f"{change.path} is {_happened(change)}, and is no part of the board: review it as code")
        elif change.removed:
            found.problems.append((change.path, f"was committed and is removed: {kind} only grow"))
        elif below and below[0] in WORKING:
            found.problems.append((change.path, f"is {_happened(change)}: it is of runs in progress, leave it out"))
        elif kind in _JUDGES:
            found.problems.append((change.path, f"is {_happened(change)}: {_JUDGES[kind]}; {_MAINTAINED}"))
        elif change.before is None:
            if added is not None:
                found.problems += ((change.path, problem) for problem in _outdated(added, weights))
        elif kind == "entries" and change.path.suffix == ".json":
            found.problems.append((change.path, "what was entered is not changed: other settings are another entry"))
        elif kind == "results":
            found.problems.append((change.path, _changed(change, added, seeds)))
        else:
            found.notes.append(f"{change.path} is changed")


def _happened(change: Change) -> str:
    return "removed" if change.removed else "new" if change.before is None else "changed"


def _outdated(added: Record, weights: Mapping[tuple[str, str, int], str]) -> Iterator[str]:
    """Why a new record was not made as runs are made today."""
    if added.schema_version != SCHEMA_VERSION:
        yield f"is new, but of schema version {added.schema_version}: run it with this msbench"
    target, attacked = added.spec.target, added.target.digest if added.target else ""
    named = weights.get((target.name, target.version, added.spec.target_seed), attacked)
    if named != attacked:
        yield f"attacked other weights ({attacked[:12]}…) than those that come with msbench ({named[:12]}…)"


def _weights() -> dict[tuple[str, str, int], str]:
    """The digests that suites name, by target, version of its recipe and seed of the copy."""
    tables = (table for suite in _suites() for table in suite.tables)
    return {
        (table.target.name, table.target.version, seed): digest
        for table in tables
        for seed, digest in table.weights.items()
    }


def _changed(change: Change, now: Record | None, seeds: Mapping[str, Mapping[str, float]]) -> str:
    """How far a committed record was moved, beside how far its seeds spread as they were."""
    text = "was committed and is changed: a record is not edited, and another run of it is no better"
    try:
        before = loads(change.before or b"")
    except StoreError:
        return text
    if now is None or now.stolen is None or before.stolen is None:
        return text
    one, other = before.stolen.clone_accuracy, now.stolen.clone_accuracy
    allowed = threshold(list({**seeds.get(cell_of(now), {}), now.run_id: one}.values()))
    judged = "" if allowed is None else f", {'beyond' if abs(one - other) > allowed else 'within'} ± {allowed:.4f}"
    return f"{text}; clone_accuracy {one:.4f} became {other:.4f}{judged}"
