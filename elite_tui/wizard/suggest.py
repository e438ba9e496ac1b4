"""Completes form fields while the user types: folders and the catalogue's models."""

from __future__ import annotations

import asyncio
import os

from textual.suggester import Suggester

from engine.home_folder import expand_home

MAX_ENTRIES = 2_000
"Folder entries examined at most, so that a completion never stalls on a huge folder."


class FolderSuggester(Suggester):
    """Completes the last path of a comma-separated list with the first folder of that prefix."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Returns the value with its last path completed."""
        return await asyncio.to_thread(complete_folder, value)


def complete_folder(value: str) -> str | None:
    """Returns the value with its last path completed to the first matching folder, or None if none matches."""
    before, comma, last = value.rpartition(",")
    typed = last.lstrip()
    head, tail = os.path.split(typed)
    if not tail:
        return None
    parent = expand_home(head or ".")
    names: list[str] = []
    try:
        with os.scandir(parent) as entries:
            for _, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                if entry.name.startswith(tail) and entry.is_dir() and entry.name.isprintable():
                    names.append(entry.name)
    except OSError:
        return None
    if not names:
        return None
    space = last[: len(last) - len(typed)]
    return before + comma + space + os.path.join(head, min(names))  # noqa: PTH118 - keeps what was typed, such as "./"
