"""Parts of messages, as data sets write them: content, calls of tools, definitions of tools, flags."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_DEEPEST = 48
"""Levels of objects and lists in the arguments of a call."""
_TEXTS = ("text", "input_text", "output_text")
_REASONING = ("thinking", "reasoning")
_CALLS = ("tool_call",)
_HIDDEN = "redacted_thinking"
"""Types of parts. The last one is encrypted."""
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
"""Of a loss: what fp32 gradients can add up beside losses of weight 1."""


MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Columns beside messages, whose words speak of what these hold."""


class NoConversationError(Exception):
    """A row is no conversation to learn."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason
        "A key of engine.data.filters.REASONS."


def as_messages(given: Any, role: str, name: str) -> list[Any]:
    """Makes a text a message of the role; one message, or a list of them, stays."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    if isinstance(given, dict):
        return [given]
    if not isinstance(given, list):
        raise NoConversationError("no conversation", f"its {name} is neither text nor messages, but {kind_of(given)}")
    return given


def parsed(value: Any) -> Any:
    """What JSON in a text stands for, as tables hold nested values; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
            return found
        if isinstance(found, dict) and ({"role", "content"} <= set(found) or {"from", "value"} <= set(found)):
            return found
    return value


def unfolded(given: Any) -> list[Any]:
    """Splits what a data set has as one message and a template as several.

    Results of tools among the parts of a request (`tool_result`, Anthropic's form) become messages of their own, in
    order; so do the two sides of a turn that is an input and its output.
    """
    if not isinstance(given, dict):
        return [given]
    if set(given) >= {"input", "output"} and not any(given.get(key) for key in ("role", "from", "speaker")):
        return [{"role": "user", "content": given["input"]}, {"role": "assistant", "content": given["output"]}]
    content = given.get("content")
    if not isinstance(content, list) or not any(map(_is_result, content)):
        return [given]
    made: list[Any] = []
    for is_result, group in itertools.groupby(content, _is_result):
        parts = list(group)
        made += map(_result, parts) if is_result else [{**given, "content": parts}]
    return made


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"


def _result(part: Mapping[str, Any]) -> dict[str, Any]:
    content = part.get("content")
    made = {"role": "tool", "content": "" if content is None else content, "tool_call_id": part.get("tool_use_id")}
    return {**made, "is_error": part.get("is_error")}


def check_row(get: Callable[[str], Any]) -> None:
    """Refuses a row whose text alone would teach something else.

    Args:
        get: A field of the row by its name.

    Raises:
        NoConversationError: it marks its answer as one that is not wanted, or holds pictures or sound.
    """
    if get("label") is False:
        problem = "its label is false, which marks an answer that is not wanted"
        raise NoConversationError("not trained", f"{problem} (data.fields=[label=none] reads no label)")
    for name in MEDIA:
        if get(name) not in (None, [], {}, ""):
            raise NoConversationError("bad content", f"it has {name}, and only text is trained on")


def content_of(given: Any, name: str) -> tuple[str | None, str | None, list[Any]]:
    """A message's text, and the reasoning and the calls of tools among its parts."""
    if given is None or isinstance(given, str):
        return given, None, []
    if not isinstance(given, list):
        raise NoConversationError("bad content", f"the content of {name} is {kind_of(given)}")
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Any] = []
    for part in given:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, dict) else kind_of(part)
        if kind == "tool_use":
            calls.append(part)
        if kind in ("tool_use", _HIDDEN):
            continue
        told = [part.get(key) for key in ("text", "value", str(kind))] if isinstance(part, dict) else []
        text = next((one for one in told if isinstance(one, str)), None)
        if text is None or kind not in _TEXTS + _REASONING + _CALLS:
            what = (
                f"without text ({kind!r})" if kind in _TEXTS + _REASONING else f"that is no text ({str(kind)[:40]!r})"
            )
            raise NoConversationError("bad content", f"{name} holds a part {what}")
        (texts if kind in _TEXTS else reasoning if kind in _REASONING else calls).append(text)
    return "".join(texts), "".join(reasoning) or None, [_json(call) for call in calls]


def calls_of(given: Any, name: str) -> list[dict[str, Any]]:
    """Calls of functions, with their arguments as an object, of the message `name`."""
    given = _json(given)
    calls = given if isinstance(given, list) else [given]
    made = []
    for call in calls:
        function = _json(call.get("function", call)) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise NoConversationError("bad tool call", f"a call of {name} names no function")
        arguments = function.get("arguments", function.get("parameters", function.get("input")))
        arguments = {} if arguments in (None, "") else _json(arguments)
        if not isinstance(arguments, dict):
            problem = f"the arguments of {function['name'][:40]!r} in {name} are no JSON object"
            raise NoConversationError("bad tool call", problem)
        if _is_deeper(arguments, _DEEPEST):
            problem = f"the arguments of {function['name'][:40]!r} in {name} are nested too deep"
            raise NoConversationError("bad tool call", problem)
        made.append(_one_call(call, function["name"], function, arguments))
    if not made:
        raise NoConversationError("bad tool call", f"{name} calls nothing")
    return made


def _one_call(
    call: Mapping[str, Any], name: str, function: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """A call with its fields in the row's order, in which a template may write them down."""
    told: dict[str, Any] = {"name": name, "arguments": arguments}
    told = {key: told[key] for key in sorted(told, key=lambda key: list(function).index(key) if key in function else 9)}
    whole: dict[str, Any] = {} if "type" in call and "function" in call else {"type": "function"}
    for key, value in call.items():
        if key == "function":
            whole[key] = told
        elif (key == "type" and value == "function") or (key == "id" and isinstance(value, str) and value):
            whole[key] = value
    return {**whole, "function": told}


def _is_deeper(value: Any, most: int) -> bool:
    inner = [value]
    for _ in range(most):
        inner = [
            one
            for outer in inner
            for one in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
    return bool(inner)


def tools_of(given: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Definitions of functions; None for none."""
    given = _json(given)
    if given in (None, [], "", {}):
        return None
    if not isinstance(given, list):
        raise NoConversationError("bad tools", f"its tools are no list, but {kind_of(given)}")
    made = []
    for one in given:
        tool = _json(one)
        tool = tool if not isinstance(tool, dict) or "function" in tool else {"type": "function", "function": tool}
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("input_schema"), dict):  # Anthropic's form
            named = {"input_schema": "parameters"}
            function = {named.get(key, key): value for key, value in function.items()}
            tool = {**tool, "function": function}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise NoConversationError("bad tools", "one of its tools names no function")
        made.append({"type": "function", **tool})
    return tuple(made)


def _json(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_on(value: Any, flag: str, name: str) -> bool:
    """Whether a flag of the message `name` leaves it in the loss."""
    if value is None:
        return True
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise NoConversationError("bad message", f"the {flag} of {name} is neither 0 nor 1")
    return bool(value)


def history_of(given: Any) -> list[list[str]]:
    """The turns before a request, each what was asked and what was answered; none where there are none.

    Raises:
        NoConversationError: they are no list of pairs of texts.
    """
    turns = parsed(given) or []
    for turn in turns if isinstance(turns, list) else [None]:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(said, str) for said in turn):
            raise NoConversationError("bad message", "its history is no list of pairs of texts")
    return list(turns)


def weight_of(value: Any, name: str) -> float:
    """The factor of the loss of a row or message, 1 where none is given.

    Raises:
        NoConversationError: it is not 0 and no number from LEAST_WEIGHT to MOST_WEIGHT.
    """
    if value is None:
        return 1.0
    if isinstance(value, bool | int | float) and (value == 0 or LEAST_WEIGHT <= value <= MOST_WEIGHT):
        return float(value)
    shown = repr(value)[:40] if isinstance(value, bool | int | float) else kind_of(value)
    raise NoConversationError("bad weight", f"the weight of {name} is {shown}, neither 0 nor from 1e-6 to 1e6")


def failed(messages: Sequence[Mapping[str, Any]], number: int) -> bool:
    """Whether a call came to an error, as the results behind it say."""
    if not messages[number].get("tool_calls"):
        return False
    for message in messages[number + 1 :]:
        if message["role"] != "tool":
            return False
        if message.get("failed"):
            return True
    return False


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    names = {type(None): "nothing", bool: "a truth value", int: "a number", float: "a number", str: "text"}
    names[bytes] = "bytes"
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
