"""Values of other kinds in the place of those that a file should hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    [1],
    {"a": [1]},
    7,
    True,
    -1.5,
    "",
    "x",
    "[{}]",
    [[]],
    [None],
    [{"type": "text", "text": {}}],
)


def with_one_changed(value: Any, odd: Any) -> Iterator[Any]:
    """Yields the value with each of its inner values in turn replaced."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, inner in places:
        for changed in (odd, *with_one_changed(inner, odd)):
            made = value.copy()
            made[place] = changed
            yield made
