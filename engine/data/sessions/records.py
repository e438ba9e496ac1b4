"""Reads parts of the JSON that agents write. What is of another kind than expected counts as nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]


def json_of(text: bytes) -> Any:
    """The value that a text of JSON holds; None for one that is broken."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def object_of(value: Any) -> Record:
    """An object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def objects_of(value: Any) -> list[Record]:
    """The objects of a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def name_of(value: Any) -> str:
    """An identity that records name each other by; "" for none, whatever stands in its place."""
    return value if isinstance(value, str) else ""
