"""Building blocks of the sections."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

PathText = str
Positive = Annotated[int, Meta(ge=1)]


def option(flag: str) -> dict[str, str]:
    """Marks a field that has its own command-line option besides `--set`."""
    return {"flag": flag}


def words(allowed: str) -> dict[str, str]:
    """Says in words what a field's pattern allows."""
    return {"allowed": allowed}
