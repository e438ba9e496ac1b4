"""Messages with their strings changed: marked, shortened, or kept from spelling control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from engine.tokenization.chat_template import RenderError

Message = Mapping[str, Any]
Change = Callable[[str], str]

_ARGUMENTS_DEEP = 64
_STUB = "x"
"""Stands for a string in a short rendering."""
_THOUGHT = re.compile(r"(\s*<think>)(.*?)(</think>)(.*)", re.DOTALL)


class _Thought(str):
    """An answer that begins with a think block, whose two names are tokens and not words."""

    __slots__ = ()


class _Written:
    """A container that a template may write as Python does. Its text is changed like a string's."""

    plain: object
    change: Change

    def __str__(self) -> str:
        return self.change(repr(self.plain))


class _Mapping(_Written, dict[str, Any]):
    pass


class _List(_Written, list[Any]):
    pass


def thought_of(content: str) -> tuple[str, str] | None:
    """The reasoning that an answer begins with, and the rest; None where it begins with none."""
    found = _THOUGHT.match(content)
    return None if found is None else (found[2].strip("\n"), found[4].lstrip("\n"))


def with_thought(content: str) -> str:
    """The content, with the names of a think block at its start as tokens rather than words."""
    return _Thought(content) if _THOUGHT.match(content) else content


def changed_message(
    message: Message,
    content: Change,
    reasoning_of: Change,
    name: Change,
    *,
    key: Change = str,
    reasoning: bool = True,
) -> dict[str, Any]:
    """A message with its strings changed: its content and reasoning, its calls' names, and their arguments and keys."""
    made = dict(message)
    for field in ("reasoning_content", "thinking"):
        if isinstance(made.get(field), str):
            made[field] = reasoning_of(made[field]) if reasoning else made[field]
    if isinstance(said := made.get("content"), str):
        made["content"] = _changed_content(said, content)
    if made.get("tool_calls"):
        made["tool_calls"] = [_changed_call(call, content, name, key) for call in made["tool_calls"]]
    return made


def _changed_content(content: str, change: Change) -> str:
    found = _THOUGHT.match(content) if isinstance(content, _Thought) else None
    if found is None:
        return change(content)
    return _Thought(f"{found[1]}{change(found[2])}{found[3]}{change(found[4])}")


def _changed_call(call: Message, content: Change, name: Change, key: Change) -> dict[str, Any]:
    function = dict(call["function"])
    function["name"] = name(function["name"])
    function["arguments"] = changed(function.get("arguments"), content, key=key)
    return {**call, "function": function}


def with_text_arguments(message: Message) -> Message:
    """A message whose calls have their arguments as JSON in a text, as DeepSeek's templates take them."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"].get("arguments"), ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def changed(value: Any, change: Change, deep: int = 0, key: Change = str) -> Any:
    """A JSON value with its strings changed, in order, and its keys."""
    if deep > _ARGUMENTS_DEEP:
        raise RenderError("its values are nested too deep")
    if isinstance(value, str):
        return change(value)
    made: _Mapping | _List
    if isinstance(value, Mapping):
        made = _Mapping({key(str(name)): changed(inner, change, deep + 1, key) for name, inner in value.items()})
    elif isinstance(value, (list, tuple)):
        made = _List(changed(inner, change, deep + 1, key) for inner in value)
    else:
        return value
    made.plain, made.change = value, change
    return made


def strings_of(value: Any) -> list[str]:
    """The strings of a JSON value, in order."""
    found: list[str] = []

    def collect(text: str) -> str:
        found.append(text)
        return text

    changed(value, collect)
    return found


def stub(text: str) -> str:
    """The text shortened to a letter; white space around it is kept, as it is rendered or taken away."""
    core = text.strip()
    return text.replace(core, _STUB, 1) if core else text


def shape(message: Message) -> object:
    """What a template may tell of a message without its words. A call's name may be written again behind them."""
    short = _without_numbers(changed_message(message, stub, stub, str))
    return sorted((key, value) for key, value in short.items() if key != "tool_call_id")


def _without_numbers(value: Any) -> Any:
    """The value with each number as 0, and without the names of calls, of which every session has new ones."""
    if isinstance(value, dict):
        return {key: _without_numbers(inner) for key, inner in value.items() if key != "id"}
    if isinstance(value, list):
        return [_without_numbers(inner) for inner in value]
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value
