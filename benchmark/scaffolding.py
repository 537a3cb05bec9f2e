"""What ``msbench new`` writes: a package with a defense or an attack that works as it stands, and its test.

The files come from the templates in ``scaffold/KIND``, in which ``$name`` and the like stand for what is derived from
the component's name.
"""

import ast
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from ..components import names
from ..errors import StoreError, UsageError

_FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "{module}.py": "module.py.txt",
    "test_{name}.py": "test.py.txt",
}
"""What each file is called, and the template that it comes from."""


def scaffold(kind: str, name: str, parent: Path) -> Path:
    """Write the package of a new component into a folder of its name, which must not exist yet.

    Args:
        kind: ``defense`` or ``attack``.
        name: lowercase letters, digits and underscores: the name that specs will use.
        parent: where the folder is made.

    Returns the folder. Raises `UsageError` for a name that cannot be one or is taken, and for a folder that is there.
    """
    _check_name(kind, name)
    folder = parent / name
    if folder.exists():
        raise UsageError(f"{folder} is there already: nothing was written; choose another name, or another --dir")
    texts = render(kind, name)
    if not all(_defines_once(text, names_for(name)["cls"]) for file, text in texts.items() if file.endswith(".py")):
        raise UsageError(f"name {name!r} is not usable: its class would be called as something that it needs")
    try:
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}; choose another --dir") from error
    return folder


def render(kind: str, name: str) -> dict[str, str]:
    """The text of every file of the package, by file name."""
    words = names_for(name)
    templates = files(__package__) / "scaffold" / kind
    return {
        file.format_map(words): Template(templates.joinpath(source).read_text(encoding="utf-8")).substitute(words)
        for file, source in _FILES.items()
    }


def names_for(name: str) -> dict[str, str]:
    """What things are called in the package of a component: its module, its class, its distribution, its title."""
    parts = name.split("_")
    return {
        "name": name,
        "module": f"msbench_{name}",
        "distribution": f"msbench-{name.replace('_', '-')}",
        "cls": "".join(part.capitalize() for part in parts),
        "title": " ".join(parts).capitalize(),
    }


def _defines_once(code: str, cls: str) -> bool:
    """Whether a module can be read, and means one thing only by the class's name."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:  # None, True
        return False
    imported = [name.asname or name.name for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names]
    defined = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    return [*imported, *defined].count(cls) == 1


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UsageError(
            f"name {name!r} is not usable: lowercase letters, digits and single underscores, as in my_{kind}"
        )
    if name in names(kind):
        raise UsageError(f"there is {'an' if kind == 'attack' else 'a'} {kind} {name!r} already: choose another name")
