"""From the text of an option to its values: budgets, seeds, and names with wildcards."""

import re
from decimal import Decimal
from fnmatch import fnmatchcase

from ...errors import UnknownName, UsageError

_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}
_MOST_SEEDS = 10_000


def parse_budget(text: str) -> int:
    """``60k``, ``2M``, ``1.5k`` or ``60_000`` as a number of queries."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip().replace("_", ""), re.ASCII)
    queries = Decimal(match[1]) * _SCALE[match[2].lower()] if match else Decimal(0)
    if queries < 1 or queries != int(queries):
        raise UsageError(f"budget {text!r} is not usable: give a whole number of queries such as 60000, 60k or 2M")
    return int(queries)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0``, ``0-2`` or ``0,3,5-7`` as seeds, in that order."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(f"seed {text!r} is not usable: give whole numbers from 0 such as 0, 0-2 or 0,3,5")
        if last - first >= _MOST_SEEDS:
            raise UsageError(f"seed {text!r} is not usable: that is more than {_MOST_SEEDS} seeds")
        seeds.extend(range(first, last + 1))
    return tuple(seeds)


def expand(kind: str, spec: str) -> list[str]:
    """The specs that a spec with ``*``, ``?`` or ``[...]`` in its name stands for; without, the spec itself.

    A plugin that does not load is passed over with a warning. Raises `UnknownName` if nothing matches.
    """
    from ...components import format_spec, parse_spec, working

    name, params = parse_spec(spec)
    if not _is_pattern(name):
        return [spec]
    known = [candidate for candidate, _ in working(kind)]
    return [format_spec(match, params) for match in _matching(kind, name, known)]


def expand_target(pattern: str) -> list[str]:
    """The same for targets, among those that come with msbench and those that are cached."""
    if not _is_pattern(pattern):
        return [pattern]
    from ...targets.reference import cards
    from ...targets.zoo import cached_targets

    return _matching("trained target", pattern, [card.name for card in (*cards(), *cached_targets())])


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _matching(kind: str, pattern: str, known: list[str]) -> list[str]:
    matches = [name for name in dict.fromkeys(known) if fnmatchcase(name, pattern)]
    if not matches:
        raise UnknownName(kind, pattern, known, hint="no name matches the pattern")
    return matches
