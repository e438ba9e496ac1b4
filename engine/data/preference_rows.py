"""Forms of published preference sets: names of the two sides, and where the request stands that both answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

SIDES = ("", "_messages", "_response")
"""Endings of the names of a side: chosen, chosen_messages, chosen_response."""
_REQUESTS = ("question", "problem", "instruction", "input")
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def spoken(text: Any) -> list[dict[str, str]]:
    """Splits a text of HH-RLHF's form, `Human: … Assistant: …`, into messages; none where it has another form."""
    if not isinstance(text, str) or "\n\nAssistant:" not in text or _SPOKEN.match(text) is None:
        return []
    said = _SPOKEN.split(text)[1:]
    return [{"role": role.lower(), "content": words.strip()} for role, words in zip(said[::2], said[1::2], strict=True)]


def holds_request(side: Any) -> bool:
    """Tells whether a side is a whole conversation, rather than an answer alone."""
    if isinstance(side, list):
        return len(side) > 1
    return bool(spoken(side))


def request_of(get: Callable[[str], Any]) -> str | None:
    """Returns the request that both sides of a row without a `prompt` answer; None for none.

    Args:
        get: A field of the row by its name.
    """
    asked = next((get(name) for name in _REQUESTS if isinstance(get(name), str) and get(name).strip()), None)
    more = get("input")
    if asked is not None and asked == get("instruction") and isinstance(more, str) and more.strip():
        return f"{asked}\n\n{more}"
    return asked
