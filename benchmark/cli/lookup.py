"""Which component a name means when its kind is not said."""

from collections.abc import Sequence

from ...components import GROUPS, Component, load_class, names, parse_spec
from ...errors import UnknownName, UsageError

Found = tuple[str, str, type[Component], dict[str, str]]
"""Kind, name, class, and what it is set to, as text."""


def find(name: str) -> list[Found]:
    """All components of a name; ``KIND:NAME`` asks for one kind, and a class in a file needs it.

    Raises `UnknownName` if there is none.
    """
    kind, _, rest = name.partition(":")
    if kind in GROUPS and rest:
        bare, params = parse_spec(rest)
        return [(kind, bare, load_class(kind, bare), params)]
    bare, params = parse_spec(name)
    kinds = [kind for kind in GROUPS if bare in names(kind)]
    if not kinds:
        every = {known for kind in GROUPS for known in names(kind)}
        raise UnknownName("component", bare, every, hint="a class in a file is KIND:FILE.py:CLASS")
    return [(kind, bare, load_class(kind, bare), params) for kind in kinds]


def find_one(words: Sequence[str]) -> Found:
    """The component that ``NAME``, ``KIND NAME`` or ``KIND:NAME`` means.

    Raises `UnknownName` for a kind or a name that is not, `UsageError` for a name that several kinds have.
    """
    if len(words) > 2:
        raise UsageError(f"{' '.join(words)!r} is too much: write NAME or KIND NAME")
    if len(words) == 2 and words[0] not in GROUPS:
        raise UnknownName("kind", words[0], GROUPS)
    if len(words) == 1 and words[0] in GROUPS and words[0] not in names(words[0]):
        raise UsageError(f"which {words[0]}? write {words[0]} NAME; `msbench list` shows the names")
    found = find(":".join(words))
    if len(found) > 1:
        kinds = " and ".join(f"a {kind}" for kind, *_ in found)
        raise UsageError(f"{words[-1]!r} is {kinds}: write {found[0][0]}:{words[-1]}, say")
    return found[0]
