"""Entries: what others submit to the board, a defense or a stronger attack.

    entries/NAME.toml    what people wrote: who, where the code is, what it needs, what was run
    entries/NAME.json    the same resolved, every hyperparameter in full, so that a board needs no code of others
    results/...          the records, in the board's store

A defense becomes a row of every table of its suite. An attack becomes no column, for a column that only some rows have
met would make the others look better than they are: its results stand in a section of their own, with the scores that
they lower, and the attack joins the next version of the suite.

Every text in an entry is somebody else's: it is one line of printable characters, and whoever shows it escapes it.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ..components import number_links, parse_spec, split_chain
from ..errors import UsageError
from .leaves import leaves
from .record import ComponentInfo, SpecInfo
from .suites import Column, DefenseEntry, FrozenSuite
from .texts import is_printable

FOLDER = Path(__file__).parent / "entries"
"""Where the entries of the committed board lie."""
RESULTS = Path(__file__).parent / "results"
"""The store of the committed board's records."""

Access = Literal["logits", "features", "surrogate", "data", "auxiliary", "queries", "account"]
"""What a component may use beyond probabilities and images; the words are those of `Traits.needs`."""


def _printable(text: str) -> str:
    if not is_printable(text):
        raise ValueError("only printable characters, all on one line")
    return text


def _portable(spec: str) -> str:
    """Refuse paths that mean something on one machine only."""
    if spec.startswith(("/", "~")) or "\\" in spec or ".." in spec.split("/"):
        raise ValueError("a file is named by a path below the folder that the code is published in")
    return spec


Line = Annotated[
    str, StringConstraints(min_length=1, max_length=300, strip_whitespace=True), AfterValidator(_printable)
]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$", max_length=60)]
"""A name that is a file's, an anchor's and a row's: nothing in it has a meaning anywhere."""
Url = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9][^\s<>\"'`\\]*$", max_length=500)]
Spec = Annotated[Line, AfterValidator(_portable)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class PaperInfo(_Part):
    """Where the method is described."""

    title: Line
    url: Url | None = None
    arxiv: Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{4,5}$")] | None = None

    @model_validator(mode="after")
    def _found(self) -> "PaperInfo":
        if self.url is None and self.arxiv is None:
            raise ValueError("a paper needs url or arxiv")
        return self


class Entry(_Part):
    """One submission, as it is written in ``NAME.toml``."""

    name: Slug
    """The row's name; the file is named after it."""
    title: Line
    authors: Annotated[tuple[Line, ...], Field(min_length=1, strict=False)]
    date: date
    code: Url
    """Where the code is published, at the version that was run."""
    license: Line
    """The code's."""
    contact: Line | None = None
    paper: PaperInfo | None = None
    protocol: Line
    suite: Slug
    """The frozen suite that was run."""
    defense: Spec | None = None
    """The defense as it was run, ``file.py:Class`` or a name; one that leaves its knob open enters at its sweep."""
    attack: Spec | None = None
    recoveries: Annotated[tuple[Spec, ...], Field(min_length=1, strict=False)] = ("none",)
    """The recoveries that an attack was run under."""
    access: Annotated[tuple[Access, ...], Field(strict=False)] = ()
    """What it needs beyond probabilities and images."""
    auxiliary: Annotated[tuple[Line, ...], Field(strict=False)] = ()
    """Data beyond the target's training set that it, or anything it is built from, was trained on."""
    partial: bool = False
    """Whether runs may be missing. What is not complete is shown and never placed."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Entry":
        if (self.defense is None) == (self.attack is None):
            raise ValueError("an entry is of a defense or of an attack: give one of the two")
        if "auxiliary" in self.access and not self.auxiliary:
            raise ValueError("it needs auxiliary data: name them in auxiliary")
        return self

    @property
    def kind(self) -> Literal["defense", "attack"]:
        """What is submitted."""
        return "defense" if self.defense is not None else "attack"

    @property
    def spec(self) -> str:
        """The component as it was run."""
        return self.defense or self.attack or ""


class TableColumns(_Part):
    """An attack with the settings that hold for one table of its suite."""

    target: str
    budget: int
    columns: Annotated[tuple[Column, ...], Field(min_length=1, strict=False)]


class AttackEntry(_Part):
    """A submitted attack, resolved."""

    name: str
    tables: Annotated[tuple[TableColumns, ...], Field(min_length=1, strict=False)]


Resolved = DefenseEntry | AttackEntry


@dataclass(frozen=True)
class Submission:
    """An entry with what it resolved to."""

    entry: Entry
    resolved: Resolved

    def is_of(self, spec: SpecInfo) -> bool:
        """Whether a run is one of the submitted defense or attack, in a setting that is submitted."""
        if isinstance(self.resolved, DefenseEntry):
            return any(setting.resolved == spec.defense for setting in self.resolved.settings)
        columns = (column for table in self.resolved.tables for column in table.columns)
        return any(setting.attack == spec.attack for column in columns for setting in column.settings)


def read_entry(path: Path) -> Entry:
    """Read one ``NAME.toml``. Raises `UsageError` with everything that is wrong, in one line."""
    try:
        entry = Entry.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        raise UsageError(f"{path}: {_reasons(error)}") from None
    return entry


def read_submission(path: Path) -> Submission:
    """Read ``NAME.toml`` and ``NAME.json`` beside it, and see that they fit.

    That its code resolves to what ``NAME.json`` says is not seen here: no code is looked for or run.

    Raises `UsageError` for files that cannot be used and for what one says and the other does not.
    """
    entry, beside = read_entry(path), path.with_suffix(".json")
    if path.stem != entry.name:
        raise UsageError(f"{path}: its name is {entry.name!r}: the file must be called {entry.name}.toml")
    model: type[DefenseEntry | AttackEntry] = DefenseEntry if entry.kind == "defense" else AttackEntry
    try:
        text = beside.read_text(encoding="utf-8")
        resolved = model.model_validate_json(text)
    except OSError as error:
        raise UsageError(f"cannot read {beside}: {error.strerror or error}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        reason = _reasons(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"{beside}: {reason}") from None
    if text != resolved_text(resolved):
        raise UsageError(f"{beside} is not in canonical form: msbench leaderboard submit writes it")
    check_fit(entry, resolved, beside)
    return Submission(entry, resolved)


def check_fit(entry: Entry, resolved: Resolved, where: Path) -> None:
    """Raise `UsageError`, which begins with the file's name, for what an entry cannot have resolved to."""
    try:
        reason = next(_misfits(entry, resolved), None)
    except UsageError as error:  # a text that is no spec
        reason = str(error)
    if reason is not None:
        raise UsageError(f"{where}: {reason}")


def submissions(folder: Path) -> Iterator[Submission]:
    """All entries of a folder, in the order of their names. Raises as `read_submission`."""
    return (read_submission(path) for path in sorted(folder.glob("*.toml")))


def resolved_text(resolved: Resolved) -> str:
    """The canonical text of what an entry resolved to: sorted keys, two spaces, one newline at the end."""
    return json.dumps(resolved.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------------------------------------- whether it fits


def _misfits(entry: Entry, resolved: Resolved) -> Iterator[str]:
    for name, value in leaves(resolved.model_dump(mode="json")).items():
        if not is_printable(f"{name}{value}"):
            yield f"{name!a}: only printable characters, all on one line"
    if resolved.name != entry.name:
        yield f"its name is {resolved.name!r}, the entry's {entry.name!r}"
    if isinstance(resolved, DefenseEntry):
        yield from _misfits_of_defense(entry, resolved)
    else:
        yield from _misfits_of_attack(entry, resolved)


def _misfits_of_defense(entry: Entry, resolved: DefenseEntry) -> Iterator[str]:
    if resolved.family == "control":
        yield "controls are the suite's own: they are not ranked, and stand in every table"
    if resolved.family in ("deterministic", "randomized") and resolved.stochastic != (resolved.family == "randomized"):
        drawn = "is" if resolved.stochastic else "is not"
        yield f"its family is {resolved.family}, but it {drawn} stochastic: what draws is ranked among the randomized"
    if set(resolved.needs) != set(entry.access):
        yield f"it needs {_listed(resolved.needs)}, but declares {_listed(entry.access)}"
    links = split_chain(entry.spec)
    for i, setting in enumerate(resolved.settings):
        mine = split_chain(setting.spec)
        if not _is_setting(links, mine, resolved.knob):
            yield f"settings.{i}: {setting.spec} is none of the settings of {entry.spec}"
        yield from (f"settings.{i}: {reason}" for reason in _misresolved(mine, setting.resolved))
    yield from _misfits_of_sweep(resolved)


def _misfits_of_sweep(resolved: DefenseEntry) -> Iterator[str]:
    """All settings are of one code, and nothing but the knob tells them apart."""
    each = [setting.resolved for setting in resolved.settings]
    first = each[0]
    for i, mine in enumerate(each):
        if mine in each[:i]:
            yield f"settings.{i}: {resolved.settings[i].spec} is there twice: leave it out"
        if mine.version != first.version:
            yield f"settings.{i}: its version is {mine.version}, but that of settings.0 is {first.version}"
        for key in sorted((mine.params.keys() | first.params.keys()) - {resolved.knob}):
            if mine.params.get(key) != first.params.get(key):
                told = f"{key} is {mine.params.get(key)!r}, but {first.params.get(key)!r} in settings.0"
                yield f"settings.{i}: {told}, and only the knob may differ, which is {resolved.knob}"


def _misfits_of_attack(entry: Entry, resolved: AttackEntry) -> Iterator[str]:
    versions: dict[str, str] = {}
    for i, table in enumerate(resolved.tables):
        for k, column in enumerate(table.columns):
            where = f"tables.{i}.columns.{k}"
            if column.role != "ranked" or column.resolved_recovery.name.startswith("oracle_"):
                yield f"{where}: an upper bound lowers no score: only what can be ranked is submitted"
            if column.attack != entry.spec:
                yield f"{where}: its attack is {column.attack}, the entry's {entry.spec}"
            said = [([column.recovery], column.resolved_recovery)]
            said += (([column.attack], setting.attack) for setting in column.settings)
            yield from (f"{where}: {reason}" for links, found in said for reason in _misresolved(links, found))
            for (spec,), found in said:
                if versions.setdefault(spec, found.version) != found.version:
                    yield f"{where}: the version of {spec} is {found.version}, but {versions[spec]} before"
        if tuple(column.recovery for column in table.columns) != entry.recoveries:
            yield f"tables.{i}: its recoveries are not the entry's, {', '.join(entry.recoveries)}"


def _is_setting(links: Sequence[str], setting: Sequence[str], knob: str | None) -> bool:
    """Whether the links of a chain are an entry's, or set its knob beside what the entry writes itself."""
    (names, written), (own_names, own) = _written(links), _written(setting)
    return names == own_names and written.items() <= own.items() and own.keys() - written.keys() <= {knob}


def _misresolved(links: Sequence[str], resolved: ComponentInfo) -> Iterator[str]:
    """What the links of a chain, or a single component, write otherwise than they are said to have resolved to."""
    names, written = _written(links)
    name = "+".join(each.rpartition("/")[2] if ".py:" in each else each for each in names)
    if resolved.name != name:
        yield f"{'+'.join(links)} cannot have resolved to {resolved.name}"
    for key, text in written.items():
        if key not in resolved.params or not _means(text, resolved.params[key]):
            found = f"has resolved to {key}={resolved.params[key]!r}" if key in resolved.params else f"lacks {key}"
            yield f"{'+'.join(links)} {found}"
    parts = (r"[^+]*\+[0-9a-f]{8}" if ".py:" in each else ".+" for each in names)
    if not re.fullmatch(r"\+".join(parts), resolved.version):
        told = "that of a file ends in + and eight digits of the file's SHA-256"
        yield f"{'+'.join(links)} cannot have version {resolved.version!r}: {told}"


def _written(links: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names, and parameters by the names that they have in a record."""
    parsed = [parse_spec(link) for link in links]
    return [name for name, _ in parsed], number_links([params for _, params in parsed])


def _means(text: str, value: Any) -> bool:
    """Whether a parameter that is written so is read as this value."""
    if value is None:
        return text.lower() == "none"
    try:
        return bool(TypeAdapter(type(value)).validate_python(text) == value)
    except ValidationError:
        return False


# ------------------------------------------------------------------------------------------------ in a suite


def defenses(suite: FrozenSuite, entered: Iterable[Submission]) -> list[DefenseEntry]:
    """The defenses that were submitted to a suite: further rows of each of its tables, as `make_board` takes them."""
    return [each.resolved for each in entered if isinstance(each.resolved, DefenseEntry) and belongs(each.entry, suite)]


def with_defenses(suite: FrozenSuite, entered: Iterable[Submission]) -> FrozenSuite:
    """The suite with those defenses in each of its tables."""
    rows = tuple(defenses(suite, entered))
    tables = tuple(table.model_copy(update={"defenses": (*table.defenses, *rows)}) for table in suite.tables)
    return suite.model_copy(update={"tables": tables})


def belongs(entry: Entry, suite: FrozenSuite) -> bool:
    """Whether an entry is of this suite, as it is frozen now."""
    return entry.suite == suite.name and entry.protocol == suite.protocol


def misplaced(submission: Submission, suite: FrozenSuite) -> Iterator[str]:
    """Why a submitted attack is another experiment than the attacks of its suite: its clone, or its pool."""
    columns = _columns(submission.resolved) if isinstance(submission.resolved, AttackEntry) else {}
    for table in suite.tables:
        target = table.target.name
        settings = (each for column in columns.get((target, table.budget), ()) for each in column.settings)
        for clone, pool in sorted({(each.clone, each.pool or "") for each in settings}):
            where = f"{target}, {table.budget:,} queries"
            if table.clone is not None and clone != table.clone:
                yield f"{where}: its clone is {clone}, but all of the suite's are {table.clone}"
            elif table.clone is None and not target.endswith(f"/{parse_spec(clone)[0]}"):
                yield f"{where}: its clone is {clone}, but the suite's are of the target's architecture"
            if pool and _images(pool) == _images(_data_set(target)):
                yield f"{where}: its pool {pool} is the target's own data, which makes it an upper bound"


def left_out(submission: Submission, suite: FrozenSuite) -> list[str]:
    """The tables of its suite that a submitted attack was not resolved for, in words."""
    if not isinstance(submission.resolved, AttackEntry):
        return []
    columns = _columns(submission.resolved)
    tables = [(table.target.name, table.budget) for table in suite.tables]
    return [f"{target}, {budget:,} queries" for target, budget in tables if (target, budget) not in columns]


def _data_set(target: str) -> str:
    head, hub, _ = target.partition("/hf-hub:")
    return head if hub else target.rpartition("/")[0]


def _images(dataset: str) -> tuple[str, str | None]:
    """Which images they are, whatever size they are brought to."""
    name, params = parse_spec(dataset)
    return name, params.get("path")


def alone(suite: FrozenSuite, submission: Submission) -> FrozenSuite:
    """The runs of a suite that one submission is about: its defense under all columns, or all defenses under it."""
    resolved = submission.resolved
    if isinstance(resolved, DefenseEntry):
        tables = tuple(table.model_copy(update={"defenses": (resolved,)}) for table in suite.tables)
        return suite.model_copy(update={"tables": tables})
    columns = _columns(resolved)
    return suite.model_copy(
        update={
            "tables": tuple(
                table.model_copy(update={"columns": columns[key]})
                for table in suite.tables
                if (key := (table.target.name, table.budget)) in columns
            )
        }
    )


def with_columns(suite: FrozenSuite, submission: Submission) -> FrozenSuite:
    """The suite with a submitted attack's columns behind its own, to see what they would change."""
    columns = _columns(submission.resolved) if isinstance(submission.resolved, AttackEntry) else {}
    tables = (
        table.model_copy(update={"columns": (*table.columns, *columns.get((table.target.name, table.budget), ()))})
        for table in suite.tables
    )
    return suite.model_copy(update={"tables": tuple(tables)})


def _columns(attack: AttackEntry) -> dict[tuple[str, int], tuple[Column, ...]]:
    return {(each.target, each.budget): each.columns for each in attack.tables}


def _reasons(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False)
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        for each in found
    )


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(sorted(words)) or "nothing"
