"""Messages with their strings changed, in the order in which a row holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.tokenization.chat_template import RenderError

Message = Mapping[str, Any]
_ARGUMENTS_DEEP = 64
_STUB = "x"
"""Stands for a string in a short rendering."""


def changed(
    message: Message,
    content: Callable[[str], str],
    reasoning_of: Callable[[str], str],
    name: Callable[[str], str],
    *,
    reasoning: bool = True,
) -> dict[str, Any]:
    """A message with its strings changed: its content, its reasoning, the arguments and names of its calls."""
    made = dict(message)
    for key in ("reasoning_content", "thinking"):
        if isinstance(made.get(key), str):
            made[key] = reasoning_of(made[key]) if reasoning else made[key]
    if isinstance(made.get("content"), str):
        made["content"] = content(made["content"])
    if made.get("tool_calls"):
        made["tool_calls"] = [_call(call, content, name) for call in made["tool_calls"]]
    return made


def _call(call: Message, content: Callable[[str], str], name: Callable[[str], str]) -> dict[str, Any]:
    function = dict(call["function"])
    function["name"] = name(function["name"])
    function["arguments"] = mapped(function.get("arguments"), content)
    return {**call, "function": function}


def mapped(value: Any, change: Callable[[str], str], deep: int = 0, key: Callable[[str], str] = str) -> Any:
    """A JSON value with its strings changed, in order, and its keys."""
    if deep > _ARGUMENTS_DEEP:
        raise RenderError("its values are nested too deep")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key(str(name)): mapped(inner, change, deep + 1, key) for name, inner in value.items()}
    return [mapped(inner, change, deep + 1, key) for inner in value] if isinstance(value, (list, tuple)) else value


def strings_of(value: Any) -> list[str]:
    """All strings of a JSON value, its keys apart."""
    found: list[str] = []

    def collect(text: str) -> str:
        found.append(text)
        return text

    mapped(value, collect)
    return found


def stub(text: str) -> str:
    """A short text in the place of one, as empty as that."""
    # White space around a string is rendered, or taken away, like that around the whole.
    core = text.strip()
    return text.replace(core, _STUB, 1) if core else text


def shape_of(message: Message) -> object:
    """What a template may tell of a message without its words."""
    short = changed(message, stub, stub, stub)
    return sorted((key, value) for key, value in short.items() if key != "tool_call_id")
