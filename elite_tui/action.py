"""One thing that a person can do; `elite_tui.actions` has all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Action:
    """One thing that a person can do."""

    name: str
    keys: str
    "Comma-separated Textual keys; the first is the one that is shown."
    label: str
    "One or two words, for the footer."
    help: str
    "One sentence, for the help page and the palette."
    rooms: tuple[str, ...] = ()
    "Rooms that have this action; empty means everywhere."
    footer: bool = True
    priority: bool = False
    "Whether the key wins over the focused widget (text fields swallow letters)."
