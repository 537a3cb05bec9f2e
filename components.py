"""What defenses, attacks, recoveries and data sets have in common: a name, typed hyperparameters, a source.

A component is a keyword-only dataclass; its fields are its hyperparameters, declared with `param`. The command
line, the record and the documentation are all generated from them. Components are found through entry points
(``msbench.attacks``, ``msbench.defenses``, ``msbench.recoveries``, ``msbench.datasets``), built-ins included:
there is no second registry. Without packaging, a spec may name a file or a module instead::

    topk                         the name of an entry point
    topk:k=5                     with hyperparameters
    path/to/file.py:MyDefense    a class in a file;  ...:MyDefense:strength=2  with hyperparameters
    package.module:MyDefense     a class in an importable module

This module imports no torch, so that names can be listed and specs parsed without waiting for it.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from .errors import BadParameter, ContractViolation, MsbenchError, UnknownName, UsageError

GROUPS = {
    "attack": "msbench.attacks",
    "defense": "msbench.defenses",
    "recovery": "msbench.recoveries",
    "dataset": "msbench.datasets",
}
"""Entry-point group of each kind of component."""

_PLURAL = {"attack": "attacks", "defense": "defenses", "recovery": "recoveries", "dataset": "datasets"}


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method comes from; ``msbench cite`` prints it as BibTeX."""

    key: str
    title: str
    authors: str
    year: int
    venue: str = ""
    arxiv: str = ""

    def bibtex(self) -> str:
        """The BibTeX entry."""
        fields = {"title": self.title, "author": self.authors, "year": str(self.year)}
        if self.venue:
            fields["booktitle"] = self.venue
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"}
        kind = "inproceedings" if self.venue else "misc"
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@{kind}{{{self.key},\n{body}\n}}"


T = TypeVar("T")


def param(
    default: T,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> T:
    """Declare one hyperparameter of a component: its default, one line on what it is, and its range.

    Returns a dataclass field; the return type is the value's, so that ``k: int = param(3, "...")`` type-checks.
    """
    bounds = {"≥": ge, ">": gt, "≤": le, "<": lt}
    metadata = {"doc": doc, "bounds": {sign: v for sign, v in bounds.items() if v is not None}}
    return dataclasses.field(default=default, metadata=metadata)


_WITHIN = {
    "≥": lambda value, bound: value >= bound,
    ">": lambda value, bound: value > bound,
    "≤": lambda value, bound: value <= bound,
    "<": lambda value, bound: value < bound,
}


@dataclass(kw_only=True)
class Component:
    """Base of everything that a spec can name. Subclasses are keyword-only dataclasses.

    Values are checked against the annotation and the declared range on construction, whether they come from
    Python or, as text, from the command line.
    """

    kind: ClassVar[str] = ""
    """``attack``, ``defense``, ``recovery`` or ``dataset``; set by the base class of each."""
    version: ClassVar[str] = "1"
    """Raised whenever the same hyperparameters would give other numbers; part of every run's identity."""
    paper: ClassVar[Paper | None] = None
    """The method's source, or None for a control of our own."""
    name: ClassVar[str] = ""
    """The name it was asked for by; set on the class itself when it is loaded from a spec."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _coerce(self.label(), field, get_type_hints(type(self))[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @classmethod
    def label(cls) -> str:
        """The name that messages and records use."""
        return str(vars(cls).get("name") or cls.__name__)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build from named hyperparameters, typed or as text.

        Raises `BadParameter` for unknown keys and unusable values.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in params:
            if key not in known:
                valid = ", ".join(known) or "none: it has no parameters"
                raise BadParameter(f"{cls.label()}: unknown parameter {key!r} (valid: {valid})")
        return cls(**params)

    def params(self) -> dict[str, Any]:
        """All hyperparameters with their values, defaults included."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def describe(self) -> dict[str, Any]:
        """The component as it stands in a record: ``{name, version, params}``."""
        return {"name": self.label(), "version": self.version, "params": self.params()}

    def __str__(self) -> str:
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        return format_spec(self.label(), given)


def _coerce(owner: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    if isinstance(value, str) and value.lower() == "none" and type(None) in getattr(hint, "__args__", ()):
        return None
    try:
        value = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BadParameter(f"{owner}: {field.name}={value!r} is not usable: {reason}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise BadParameter(f"{owner}: {field.name}={value!r} is not usable: it must be a finite number")
    for sign, bound in field.metadata.get("bounds", {}).items():
        if value is not None and not _WITHIN[sign](value, bound):
            raise BadParameter(f"{owner}: {field.name}={value!r} is out of range: it must be {sign} {bound}")
    return value


# ---------------------------------------------------------------------------------------------------- specs


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``name:key=value,key=value`` into the name and its parameters, both still text.

    The name may hold a colon itself (``file.py:Class``, ``imagefolder:PATH``): parameters begin at the first
    colon that is followed by ``key=``.
    """
    match = re.match(r"(?P<name>.+?):(?P<params>[A-Za-z_]\w*=.*)$", spec.strip())
    name, text = (match["name"], match["params"]) if match else (spec.strip(), "")
    if not name:
        raise UsageError(f"empty component in {spec!r}: write NAME or NAME:key=value,key=value")
    params: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not value:
            raise _not_key_value(item, spec)
        if key.strip() in params:
            raise BadParameter(f"{key.strip()!r} is given twice in {spec!r}")
        params[key.strip()] = value.strip()
    return name, params


def forgotten(name: str) -> BadParameter:
    """The error for a known name with parameters of which one lacks its key or its value: ``topk:3``, ``topk:k``."""
    items = name.partition(":")[2].split(",")
    return _not_key_value(next((item for item in items if "=" not in item), items[0]), name)


def _not_key_value(item: str, spec: str) -> BadParameter:
    key = item.strip().removesuffix("=")
    way_out = f": write {key}=VALUE" if key.isidentifier() else ""
    return BadParameter(f"{item!r} in {spec!r} is not key=value{way_out}")


def format_spec(name: str, params: Mapping[str, Any]) -> str:
    """The inverse of `parse_spec`."""
    return name + (":" + ",".join(f"{key}={value}" for key, value in params.items()) if params else "")


def split_chain(spec: str) -> list[str]:
    """Split ``a:k=1+b`` at its plus signs; one inside a number (``1e+5``) or a folder's name does not count."""
    links: list[str] = []
    for part in re.split(r"\+(?=\s*[A-Za-z_./~])", spec):
        if links and _is_begun_path(links[-1], part):
            links[-1] += f"+{part}"
        else:
            links.append(part)
    return [link.strip() for link in links]


def number_links(params: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """Parameters of a chain's links as records have them: the first one's ``k`` is ``0.k``; one alone keeps ``k``."""
    if len(params) == 1:
        return dict(params[0])
    return {f"{i}.{key}": value for i, each in enumerate(params) for key, value in each.items()}


def links_of(name: str, params: Mapping[str, T]) -> list[tuple[str, dict[str, T]]]:
    """The links of a recorded defense, each with its name and parameters: what `number_links` has joined."""
    names = name.split("+")
    if len(names) == 1:
        return [(name, dict(params))]
    return [
        (link, {key.removeprefix(f"{i}."): value for key, value in params.items() if key.startswith(f"{i}.")})
        for i, link in enumerate(names)
    ]


def _is_begun_path(text: str, rest: str) -> bool:
    """Whether a plus sign is part of a path, as in ``dir+/file.py:Class``, but not in ``topk+/file.py:Class``.

    What a path leads to comes after a colon, and a defense's name has no slash.
    """
    return ":" not in text and "/" in text + rest[:1] and text.strip() not in names("defense")


# --------------------------------------------------------------------------------------------------- lookup


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUPS[kind]):
        if entry.name in found and found[entry.name].value != entry.value:
            warnings.warn(
                f"two packages offer the {kind} {entry.name!r}: {found[entry.name].value} is used, "
                f"{entry.value} is not",
                stacklevel=2,
            )
            continue
        found.setdefault(entry.name, entry)
    return found


def names(kind: str) -> list[str]:
    """All names of a kind, sorted. Nothing is imported."""
    return sorted(_entry_points(kind))


def load_class(kind: str, name: str) -> type[Component]:
    """The class behind a name, ``file.py:Class`` or ``module:Class``.

    Raises `UnknownName` for a name nobody offers, `BadParameter` for parameters that are not ``key=value``,
    `UsageError` for a file, module or class that is missing, and `ContractViolation` for a plugin that fails to
    import or is no component of that kind.
    """
    entry = _entry_points(kind).get(name)
    if entry is not None:
        cls = _import_plugin(kind, name, entry.load)
    elif name.partition(":")[0] in _entry_points(kind):  # topk:3, its key forgotten, is no module
        raise forgotten(name)
    elif ":" in name:
        cls = _load_by_path(kind, name)
    else:
        raise UnknownName(kind, name, names(kind), hint=f"msbench list {_PLURAL[kind]} shows all")
    if not (isinstance(cls, type) and issubclass(cls, Component) and cls.kind == kind):
        raise ContractViolation(f"{kind} {name!r} does not derive from msbench.{kind.capitalize()}")
    if entry is not None or "name" not in vars(cls):
        cls.name = name  # an entry point's name goes before module:Class, whichever was asked for first
    return cls


def load(kind: str, spec: str) -> Component:
    """Build the component that a spec describes. Raises as `load_class` and `Component.from_params`."""
    name, params = parse_spec(spec)
    return load_class(kind, name).from_params(params)


def working(kind: str) -> Iterator[tuple[str, type[Component]]]:
    """Every component of a kind that loads; one that does not is a warning, never the end."""
    for name in names(kind):
        try:
            yield name, load_class(kind, name)
        except MsbenchError as error:
            warnings.warn(str(error), stacklevel=2)


def origin(kind: str, name: str) -> str:
    """The distribution that offers a name, with its version."""
    dist = _entry_points(kind)[name].dist
    return f"{dist.name} {dist.version}" if dist else "unknown"


def _import_plugin(kind: str, name: str, load_it: Any) -> Any:
    try:
        return load_it()
    except Exception as error:  # a plugin may fail in any way at import
        raise ContractViolation(f"{kind} {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _load_by_path(kind: str, name: str) -> Any:
    where, _, attribute = name.rpartition(":")
    module = _module_from_file(kind, where) if where.endswith(".py") else _module_by_name(kind, where)
    if not hasattr(module, attribute):
        raise UsageError(f"{where} defines no {attribute!r} (asked for as {kind} {name!r})")
    cls = getattr(module, attribute)
    if where.endswith(".py") and isinstance(cls, type) and issubclass(cls, Component):
        # The file is part of the run's identity: other code must not find the old record.
        digest = hashlib.sha256(Path(where).expanduser().read_bytes()).hexdigest()[:8]
        cls.version = f"{cls.version.partition('+')[0]}+{digest}"
        cls.name = f"{Path(where).name}:{attribute}"
    return cls


def _module_from_file(kind: str, where: str) -> ModuleType:
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"no file {where!r} to load the {kind} from")
    identity = str(path).encode() + path.read_bytes()  # an edited file is another module
    alias = f"msbench_plugin_{hashlib.sha256(identity).hexdigest()[:12]}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{where!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # dataclasses look their module up while it runs
    try:
        _import_plugin(kind, where, lambda: spec.loader.exec_module(module))
    except ContractViolation:
        del sys.modules[alias]
        raise
    return module


def _module_by_name(kind: str, where: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"no module {where!r} to load the {kind} from (a file is written path/to/file.py:Class)")
    module: ModuleType = _import_plugin(kind, where, lambda: importlib.import_module(where))
    return module
