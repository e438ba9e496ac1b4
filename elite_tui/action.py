"""Declares the type of one user action; `elite_tui.actions` lists all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Action:
    """One user action."""

    name: str
    keys: str
    "Comma-separated Textual keys; the first is the one shown."
    label: str
    "One or two words for the footer."
    help: str
    "One sentence for the help page and the palette."
    screens: tuple[str, ...] = ()
    "Screens that have this action; empty means all."
    footer: bool = True
    priority: bool = False
    "Whether the key takes precedence over the focused widget (text fields swallow letters)."
