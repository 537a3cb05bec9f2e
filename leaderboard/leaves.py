"""Nested data laid flat, to compare it key by key and to name what differs."""

from collections.abc import Iterator
from typing import Any

Leaves = dict[str, Any]
"""Numbers, texts, truth values and nulls, by the names of their keys and places joined by dots."""


def leaves(value: Any) -> Leaves:
    """Everything in dictionaries and lists, at any depth: ``{"a": {"b": [1]}}`` is ``{"a.b.0": 1}``."""
    return dict(_flat(value, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
