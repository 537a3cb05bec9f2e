"""From runs in a store and an entry to what is committed: the files of ``leaderboard/entries`` and ``results``."""

import json
import shlex
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Literal, cast

from .. import PROTOCOL
from ..components import format_spec, names, parse_spec, split_chain
from ..errors import MsbenchError, UsageError
from ..files import write_atomically
from ..leaderboard.board_check import runs_of
from ..leaderboard.board_runs import command_of
from ..leaderboard.check import problems
from ..leaderboard.entries import (
    AttackEntry,
    Entry,
    Resolved,
    Submission,
    TableColumns,
    alone,
    check_fit,
    read_entry,
    read_submission,
    resolved_text,
    submissions,
    with_defenses,
)
from ..leaderboard.leaves import leaves
from ..leaderboard.record import Record, SpecInfo
from ..leaderboard.store import Store, relative_path
from ..leaderboard.suites import DefenseEntry, FrozenSuite, load_suite
from .spec import RunSpec
from .suite import ColumnPlan, defense_entry, freeze_column
from .validate_attack import validate_attack
from .validate_defense import validate_defense

Kind = Literal["defense", "attack"]
_PAGES = "docs/board"
"""Where the committed board is built, below the root of the repository."""
_KEPT = 1
"""What ``git check-ignore`` exits with for a file that it does not ignore: 0 if it does, 128 outside of a checkout."""

_TEMPLATE = Template("""\
# An entry for the leaderboard. Fill in what is empty; everything is published.

name = $name               # the row's name: lowercase letters, digits, - and _
title = ""              # the method's name, as a reader knows it
authors = []            # ["First Last", "First Last"]
date = $date
code = ""               # https://..., at the version that was run
license = ""            # the code's: MIT, Apache-2.0, ...
$kind = $spec
${recoveries}access = $access             # what it needs beyond probabilities and images
auxiliary = []          # data beyond the target's training set that anything in it was trained on
protocol = $protocol
suite = $suite
# partial = true        # submit although runs are missing: shown, and never placed
# contact = ""

# [paper]
# title = ""
# arxiv = ""            # 2309.10058, or url = "https://..."
""")


def template(kind: Kind, spec: str, suite: str) -> str:
    """An entry to fill in. Raises as `benchmark.suite.defense_entry` and `resolve_entry` for what cannot be entered."""
    frozen = load_suite(suite)
    resolved = _resolve(kind, spec, ("none",), "to-be-named", frozen)
    needs = list(resolved.needs) if isinstance(resolved, DefenseEntry) else []
    said = {
        "name": "",
        "date": datetime.now(UTC).date().isoformat(),
        "spec": spec,
        "access": needs,
        "protocol": PROTOCOL,
        "suite": frozen.name,
    }
    written = {key: value if key == "date" else json.dumps(value, ensure_ascii=False) for key, value in said.items()}
    recoveries = "" if kind == "defense" else 'recoveries = ["none"]\n'
    return _TEMPLATE.substitute(written, kind=kind, recoveries=recoveries)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A submission with its records, ready to be written."""

    submission: Submission
    text: str
    """The entry as it was written."""
    suite: FrozenSuite
    records: tuple[Record, ...]
    missing: tuple[SpecInfo, ...]

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.submission.entry.name


def collect(entry_file: Path, store: Store, board: Path) -> Bundle:
    """Read an entry, resolve it with the code that it names, and find the records that its suite asks for.

    An attack's records against defenses that stand on the board are taken along, and are not missed.

    Raises `UsageError` for an entry that cannot be used, of another protocol, or whose declared access is not the
    code's, and for a record that could not stand on a board.
    """
    entry = read_entry(entry_file)
    suite = load_suite(entry.suite)
    if not entry.protocol == suite.protocol == PROTOCOL:
        raise UsageError(f"{entry_file}: protocol {entry.protocol}, but the suite's is {suite.protocol}")
    resolved = _resolve(entry.kind, entry.spec, entry.recoveries, entry.name, suite)
    if isinstance(resolved, DefenseEntry) and set(resolved.needs) != set(entry.access):
        raise UsageError(f"{entry_file}: access must be {json.dumps(resolved.needs)}, which is what the code declares")
    check_fit(entry, resolved, entry_file)
    submission = Submission(entry, resolved)
    required = runs_of(alone(suite, submission))
    found = {run: store.get(spec) for run, spec in _welcome(submission, suite, board).items()}
    done = {run: record for run, record in found.items() if record is not None and record.status == "done"}
    missing = [spec for run, spec in required.items() if run not in done]
    for record in done.values():
        for problem in problems(record, store.path_of(record), PROTOCOL):
            raise UsageError(f"{store.path_of(record)}: {problem}")
    text = entry_file.read_text(encoding="utf-8")
    return Bundle(submission=submission, text=text, suite=suite, records=tuple(done.values()), missing=tuple(missing))


def _welcome(submission: Submission, suite: FrozenSuite, board: Path) -> dict[str, SpecInfo]:
    """The runs that its suite asks for, and those of an attack against defenses that stand on the board."""
    others = submissions(board / "entries") if submission.entry.kind == "attack" else ()
    return runs_of(alone(with_defenses(suite, others), submission))


def superseded(bundle: Bundle, board: Path) -> list[Path]:
    """The records on a board that nothing would ask for once an entry is replaced: those of its code as it was.

    Raises `UsageError` for a name that is another's or of another suite.
    """
    there, results = board / "entries" / f"{bundle.name}.toml", board / "results"
    if not there.exists():
        return []
    _check_replaced(there, bundle.submission.entry)
    try:
        before = read_submission(there)
    except UsageError:  # half an entry, which is written anew
        return []
    asked = _welcome(bundle.submission, bundle.suite, board).keys() | runs_of(bundle.suite).keys()
    left = [spec for run, spec in _welcome(before, bundle.suite, board).items() if run not in asked]
    return [path for spec in left if (path := results / relative_path(spec)).is_file()]


def broken_promises(submission: Submission) -> Iterator[str]:
    """What the contract suite finds wrong with every setting that is submitted."""
    resolved, entry = submission.resolved, submission.entry
    specs = [each.spec for each in resolved.settings] if isinstance(resolved, DefenseEntry) else [entry.spec]
    for spec in specs:
        for check in validate_defense(spec) if entry.kind == "defense" else validate_attack(spec):
            if not check.passed:
                yield f"{spec}: {check.name}: {check.detail}"


def misstated(submission: Submission, code: Path | None = None, ran: Collection[str] = ()) -> Iterator[str]:
    """What an entry resolved to otherwise than its code does, a line each that names the field of ``NAME.json``.

    Nothing where not all of its code is at hand: installed under the names that the entry gives, in files of these
    names in ``code``, which are run, or in modules, if ``code`` is given or they are among those that ``ran`` already.
    No other file or module that an entry names is imported.
    """
    entry = submission.entry
    if entry.kind == "defense":
        asked = [("defense", *parse_spec(link)) for link in split_chain(entry.spec)]
    else:
        asked = [("attack", *parse_spec(entry.spec)), *(("recovery", *parse_spec(each)) for each in entry.recoveries)]
    places = {name: _place(kind, name, code, ran) for kind, name, _ in asked}
    if not all(places.values()):
        return
    here = [format_spec(places[name], params) for _, name, params in asked]
    spec, recoveries = ("+".join(here), []) if entry.kind == "defense" else (here[0], here[1:])
    try:
        resolved = _resolve(entry.kind, spec, recoveries, entry.name, load_suite(entry.suite))
    except MsbenchError as error:
        yield f"its code does not resolve: {error}"
        return
    said = leaves(submission.resolved.model_dump(mode="json"))
    true = leaves(resolved.model_dump(mode="json"))
    true = {key: _as_named(value, places) if isinstance(value, str) else value for key, value in true.items()}
    for key in sorted(said.keys() | true.keys()):
        if said.get(key) != true.get(key):
            yield f"{key} is {said.get(key)!r}, by its code {true.get(key)!r}"


def _place(kind: str, name: str, code: Path | None, ran: Collection[str]) -> str:
    """The name under which a component's code is found here; empty where it is not at hand."""
    if ".py:" in name:
        return str(code / name.rpartition("/")[2]) if code is not None else ""
    return name if code is not None or name in ran or name in names(kind) else ""


def _as_named(text: str, places: Mapping[str, str]) -> str:
    """A text in which components have the names that an entry gives them."""
    for name, place in places.items():
        text = text.replace(place, name)
    return text


def write(bundle: Bundle, board: Path) -> list[Path]:
    """Put the entry and its records into a board's folder, and say what was written.

    Raises `UsageError` for a run that is there with other numbers.
    """
    results, there = Store(board / "results"), board / "entries" / f"{bundle.name}.toml"
    for record in bundle.records:
        other = results.get(record.spec)
        if other is not None and other != record:
            raise UsageError(
                f"{results.path_of(record)} holds run {record.run_id} already, with other numbers: a committed record "
                "stays as it is; one that you never committed can be deleted"
            )
    texts = {there: bundle.text, there.with_suffix(".json"): resolved_text(bundle.submission.resolved)}
    for path, text in texts.items():
        write_atomically(path, text)
    return [*texts, *map(results.save, bundle.records)]


def commands(bundle: Bundle, store: Path) -> list[str]:
    """What has to be run to have what is missing."""
    entry = bundle.submission.entry
    if entry.kind == "defense":
        return [shlex.join(["msbench", "sweep", entry.suite, "--defense", entry.spec, "--store", str(store)])]
    attacked = {(spec.target.name, spec.budget) for spec in bundle.missing}
    return [
        command_of(table, each, each.settings, entry.spec, entry.recoveries, store)
        for table in bundle.suite.tables
        if (table.target.name, table.budget) in attacked
        for each in table.defenses
    ]


def check_checkout(board: Path) -> None:
    """Raise `UsageError` for a board that git does not keep, from which no pull request can be made."""
    try:
        ignored = subprocess.run(
            ["git", "check-ignore", "--quiet", "entries/any.toml"], cwd=board, capture_output=True, check=False
        )
    except OSError as error:
        raise UsageError(f"git cannot be run in {board}: {error.strerror or error}") from None
    if ignored.returncode != _KEPT:
        raise UsageError(f"{board} is in no git checkout: give --board DIR, the folder leaderboard of your clone")


def publishing(bundle: Bundle, board: Path) -> list[str]:
    """What is left to do in the root of the repository, the pages of a committed board included."""
    name, folder, suite = bundle.name, board.resolve(), bundle.suite.name
    added = [f"{folder.name}/entries/{name}.*", f"{folder.name}/results"]
    build = []
    shown = _shown(folder.parent / _PAGES)
    if suite in shown:
        suites = " ".join(f"--suite {each}" for each in shown)
        build = [f"msbench leaderboard build {suites} --board {folder.name} --out {_PAGES}"]
        added.append(_PAGES)
    return [
        f"git switch -c {name}",
        *build,
        f"git add {' '.join(added)}",
        f"git commit -m 'Leaderboard: {name}'",
        f"git push -u origin {name}",
    ]


def _shown(pages: Path) -> list[str]:
    """The suites of the boards that were built there: of one beside the page, of several in folders of their own."""
    built = [*pages.glob("board.json"), *sorted(pages.glob("*/board.json"))]
    return [cast("str", json.loads(data.read_text(encoding="utf-8"))["suite"]) for data in built]


def _check_replaced(there: Path, entry: Entry) -> None:
    """An entry may be written again, but not over another: its records would be left without one."""
    before = read_entry(there)
    if _identity(before) != _identity(entry):
        raise UsageError(f"{there} is there already, of another method: choose another name")
    if before.suite != entry.suite:
        raise UsageError(
            f"{there} is of the suite {before.suite}, and an entry is of one: enter {entry.suite} under another name, "
            f"{entry.name}-{entry.suite} say"
        )


def _identity(entry: Entry) -> Sequence[object]:
    return entry.kind, entry.spec.rpartition("/")[2], entry.authors


# -------------------------------------------------------------------------------------------------- resolving


def _resolve(kind: Kind, spec: str, recoveries: Sequence[str], name: str, suite: FrozenSuite) -> Resolved:
    if kind == "defense":
        return defense_entry(spec).model_copy(update={"name": name})
    return AttackEntry(name=name, tables=tuple(_columns(spec, recoveries, suite)))


def _columns(spec: str, recoveries: Sequence[str], suite: FrozenSuite) -> Iterator[TableColumns]:
    """The attack as it is run today against each of the suite's targets, frozen by being submitted."""
    for table in suite.tables:
        asked = RunSpec(target=table.target.name, clone=table.clone, budget=table.budget)
        columns = tuple(
            freeze_column(asked, ColumnPlan(attack=spec, role="ranked"), recovery) for recovery in recoveries
        )
        yield TableColumns(target=table.target.name, budget=table.budget, columns=columns)
