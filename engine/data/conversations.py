"""Conversations as rows of data sets have them, brought to one form: messages with roles, calls of tools and reasoning.

A row that is no conversation has a reason, which the report counts, and says what is wrong with it on one line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from engine.data.messages import (
    MEDIA,
    NoConversationError,
    as_messages,
    calls_of,
    check_row,
    content_of,
    failed,
    history_of,
    is_on,
    kind_of,
    parsed,
    tools_of,
    unfolded,
    weight_of,
)
from engine.data.preference_rows import SIDES, holds_request, request_of, spoken

LANGUAGE = "Conversation"
"What the report lists them under."
REVISION = 5
"Raised when the same row would be read otherwise; part of every store's key."

_ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "system_prompt"), "system"),
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "environment", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""What data sets call who speaks; "call" is an answer that is the JSON of one call."""
_MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "trajectory", "chat")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "code"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("problem", "solution"),
)
_COLUMNS = (
    *_MESSAGES,
    "tools",
    "functions",
    "system",
    "history",
    "input",
    *(f"chosen{end}" for end in SIDES),
    "weight",
    "label",
    *MEDIA,
    *dict.fromkeys(name for pair in _PAIRS for name in pair),
)
"What is read of a row."
_SIDES = ("user", "assistant")
_FLAGS = ("train", "training", "loss")
_CONTINUED = (("prompt", "completion"), ("prompt", "code"))
"Pairs whose second text goes on with the first one, as it stands."


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: Role, content and so on, as chat templates take them. A text that is continued is two messages, of
            the roles "prompt" and "completion".
        learnt: Whether each message is trained on.
        tools: Definitions of functions, as chat templates take them.
        date: When it was written down.
        rejected: The other side of a preference, of which this conversation is the chosen one.
        weights: Factor of the loss of each message, 0 where it is not learnt. None: 1 of each that is.
    """

    messages: tuple[Mapping[str, Any], ...]
    learnt: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    date: datetime | None = None
    rejected: Conversation | None = None
    weights: tuple[float, ...] | None = None

    @property
    def is_continued(self) -> bool:
        """Whether it is a text and what goes on with it, without a template."""
        return bool(self.messages[0]["role"] == "prompt")

    def texts(self) -> list[str]:
        """Its strings that a person or a tool wrote, in order."""
        return [text for _, text in self.named_texts()]

    def named_texts(self) -> list[tuple[str, str]]:
        """Its `texts`, each behind the key that it stands under in a call's arguments; "" elsewhere."""
        found: list[tuple[str, str]] = []

        def collect(name: str, text: str) -> str:
            found.append((name, text))
            return text

        self._mapped(collect)
        return found

    def with_texts(self, texts: Sequence[str]) -> Conversation:
        """The conversation with other strings, as many as `texts` gives."""
        left = iter(texts)
        return self._mapped(lambda _, __: next(left))

    def answers(self) -> str:
        """What is trained on, as text."""
        said = [str(m.get("content") or "") for m, learnt in zip(self.messages, self.learnt, strict=True) if learnt]
        return "\n".join([*said, *([] if self.rejected is None else [self.rejected.answers()])])

    def first_request(self) -> bytes:
        """A digest of what comes before the first answer, without instructions that many have in common."""
        asked = []
        for message in self.messages:
            if message["role"] in ("assistant", "completion"):
                break
            if message["role"] not in ("system", "developer"):
                asked.append(str(message.get("content") or ""))
        return hashlib.sha256("\0".join(asked).encode("utf-8", "surrogatepass")).digest()

    def digest(self) -> bytes:
        """SHA-256 of all that determines its tokens, the template apart."""
        told: list[Any] = [self.messages, self.learnt, self.tools, self.date and self.date.isoformat()[:10]]
        if self.rejected is not None:
            told.append(self.rejected.digest().hex())
        if self.weights is not None:
            told.append(self.weights)
        return hashlib.sha256(json.dumps(told, sort_keys=True, allow_nan=False).encode()).digest()

    def _mapped(self, change: Callable[[str, str], str]) -> Conversation:
        messages = []
        for message in self.messages:
            made = dict(message)
            for key in ("reasoning_content", "content"):
                if isinstance(made.get(key), str):
                    made[key] = change("", made[key])
            if "tool_calls" in made:
                made["tool_calls"] = [
                    {
                        **call,
                        "function": {**call["function"], "arguments": mapped(call["function"]["arguments"], change)},
                    }
                    for call in made["tool_calls"]
                ]
            messages.append(made)
        rejected = None if self.rejected is None else self.rejected._mapped(change)
        return replace(self, messages=tuple(messages), rejected=rejected)


def mapped(value: Any, change: Callable[[str, str], str], name: str = "") -> Any:
    """A JSON value with its strings changed, in order, each given the key that it stands under; keys stay."""
    if isinstance(value, str):
        return change(name, value)
    if isinstance(value, dict):
        return {key: mapped(inner, change, str(key)) for key, inner in value.items()}
    return [mapped(inner, change) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class RowReader:
    """Reads rows as conversations.

    Args:
        fields: This project's name of a field → the data set's.
        train_on: "assistant" for all answers, "last" for the last one.
        mask_errors: Whether calls whose result is marked as an error are not trained on.
        pairs: Whether a prompt with its response may be a conversation; else they are a text that is continued.
        dated: Whether the template names the day.
        preferences: Whether rows are pairs of a chosen and a rejected answer; else their chosen side is read.
    """

    fields: Mapping[str, str]
    train_on: str = "assistant"
    mask_errors: bool = False
    pairs: bool = True
    dated: bool = False
    preferences: bool = False

    def reading(self, column: str) -> RowReader:
        """A reader whose messages stand in a column."""
        return replace(self, fields={**self.fields, "messages": column})

    def columns(self, names: Collection[str]) -> list[str]:
        """The columns of a table that hold conversations."""
        known = (*_COLUMNS, *(f"rejected{end}" for end in SIDES)) if self.preferences else _COLUMNS
        wanted = {self.fields.get(name, name) for name in known}
        return [name for name in names if name in wanted]

    def form(self, names: Collection[str], values: Mapping[str, Any] | None = None) -> str:
        """What makes rows with these names conversations, in words; "" where nothing does.

        Args:
            names: Of the columns.
            values: A row, to tell messages from text under the same name.
        """

        def has(name: str) -> bool:
            return self.fields.get(name, name) in names

        def value(name: str) -> Any:
            return None if values is None else values.get(self.fields.get(name, name))

        if self.preferences:
            return "+".join(self._side(side, names) for side in ("chosen", "rejected"))
        for name in _MESSAGES:
            if has(name) and (value(name) is None or isinstance(value(name), list)):
                return self.fields.get(name, name)
            if has(name) and isinstance(value(name), str) and str(value(name)).lstrip().startswith("[{"):
                return self.fields.get(name, name)
        if (chosen := self._side("chosen", names)) in names:
            return chosen
        for pair in _PAIRS:
            if all(map(has, pair)) and (not has("text") or any(name in self.fields for name in pair)):
                parts = (pair[0], "input", pair[1]) if pair[0] == "instruction" and has("input") else pair
                return "+".join(self.fields.get(name, name) for name in parts)
        return ""

    def named_messages(self, names: Collection[str]) -> str:
        """The column that is called as messages are, whatever it holds; "" where there is none."""
        return next((name for one in _MESSAGES if (name := self.fields.get(one, one)) in names), "")

    def read(self, values: Mapping[str, Any], date: datetime | None = None) -> Conversation:
        """The conversation that a row holds.

        Raises:
            NoConversationError: it holds none that can be learnt.
        """
        try:
            conversation = self._read(values, date)
            conversation.texts()
        except RecursionError:
            raise NoConversationError("bad message", "its values are nested too deep") from None
        try:
            conversation.digest()
        except RecursionError:
            raise NoConversationError("bad message", "its values are nested too deep") from None
        except (TypeError, ValueError) as error:
            # A table holds bytes, and Python's JSON NaN and Infinity. No template writes them as JSON.
            raise NoConversationError("bad message", f"a value of it is no JSON ({error})") from None
        return conversation

    def _read(self, values: Mapping[str, Any], date: datetime | None) -> Conversation:
        if self.preferences:
            return self._preference(values, date)
        return self._conversation(*self._found(values), date)

    def _preference(self, values: Mapping[str, Any], date: datetime | None) -> Conversation:
        """Both sides of a preference. What they have in common before they part is not trained on."""
        name = self._side("chosen", values)
        given = [values.get(name), values.get(self._side("rejected", values))]
        if None in given:
            raise NoConversationError("no pair", "it has no chosen and rejected answer")
        sides = [self._found({**values, name: side}) for side in given]
        (chosen, *_), (rejected, *_) = sides
        if chosen == rejected:
            raise NoConversationError("no pair", "its chosen and its rejected answer are the same")
        common = sum(itertools.takewhile(bool, (one == other for one, other in zip(chosen, rejected, strict=False))))
        made = [
            self._conversation(
                messages, [on if number >= common else 0.0 for number, on in enumerate(learnt)], tools, date
            )
            for messages, learnt, tools in sides
        ]
        if any(side.weights is not None for side in made):
            raise NoConversationError("bad weight", "it has a weight other than 0 and 1, which no pair can have")
        return replace(made[0], rejected=made[1])

    def _conversation(
        self,
        messages: list[dict[str, Any]],
        weights: list[float],
        tools: tuple[Mapping[str, Any], ...] | None,
        date: datetime | None,
    ) -> Conversation:
        if not messages:
            raise NoConversationError("no messages", "it has no message")
        answers = [number for number, message in enumerate(messages) if message["role"] in ("assistant", "completion")]
        if not answers:
            raise NoConversationError("no answer", "no message of it is an assistant's")
        places = set(answers)
        learnt = [weight > 0 and number in places for number, weight in enumerate(weights)]
        if self.train_on == "last":
            learnt = [on and number == answers[-1] for number, on in enumerate(learnt)]
        if self.mask_errors:
            learnt = [on and not failed(messages, number) for number, on in enumerate(learnt)]
        for number in answers:
            message = messages[number]
            if not str(message.get("content") or "").strip() and not message.get("tool_calls"):
                raise NoConversationError("empty answer", f"message {number + 1} (assistant) says nothing")
        if not any(learnt):
            raise NoConversationError("not trained", "none of its answers is to be trained on")
        shown = tuple({key: value for key, value in message.items() if key != "failed"} for message in messages)
        kept = tuple(weight if on else 0.0 for weight, on in zip(weights, learnt, strict=True))
        weighs = any(weight not in (0.0, 1.0) for weight in kept)
        return Conversation(shown, tuple(learnt), tools, date, weights=kept if weighs else None)

    def _found(
        self, values: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], list[float], tuple[Mapping[str, Any], ...] | None]:
        """Messages, their weights and the tools of a row."""
        get = self._get(values)
        weight = self.weight(values)
        tools = tools_of(get("tools") if get("tools") is not None else get("functions"))
        system = get("system")
        check_row(get)
        given = next((get(name) for name in _MESSAGES if get(name) is not None), None)
        chosen = values.get(self._side("chosen", values))
        # Messages that end with a request are what both sides of a preference answer.
        asked = given is not None and chosen is not None and not self._is_answered(given)
        if chosen is not None and (asked or self.preferences or given is None):
            prompt = request_of(get) if get("prompt") is None and not holds_request(parsed(chosen)) else get("prompt")
            messages, learnt = self._preferred(given if prompt is None and asked else prompt, chosen)
        elif given is not None:
            messages, learnt = self._messages(given, "messages")
        else:
            messages, learnt = self._pair(values)
        if isinstance(system, str) and system.strip() and messages and messages[0]["role"] not in ("system", "prompt"):
            messages, learnt = [{"role": "system", "content": system}, *messages], [0.0, *learnt]
        return messages, [weight * on for on in learnt], tools

    def weight(self, values: Mapping[str, Any]) -> float:
        """The factor of the loss of a row.

        Raises:
            NoConversationError: it is no weight.
        """
        return weight_of(self._get(values)("weight"), f"the row (field {self.fields.get('weight', 'weight')})")

    def _get(self, values: Mapping[str, Any]) -> Callable[[str], Any]:
        return lambda name: values.get(self.fields.get(name, name))

    def _side(self, side: str, names: Collection[str]) -> str:
        """The column of a side of a preference."""
        known = (f"{side}{end}" for end in SIDES)
        return self.fields.get(side) or next((name for name in known if name in names), side)

    def _messages(self, given: Any, what: str) -> tuple[list[dict[str, Any]], list[float]]:
        given = parsed(given)
        if not isinstance(given, list):
            raise NoConversationError("no conversation", f"its {what} are no list, but {kind_of(given)}")
        messages: list[dict[str, Any]] = []
        learnt: list[float] = []
        for number, one in enumerate(given, 1):
            for each in unfolded(parsed(one)):
                message, on = self._message(each, f"message {number}")
                messages.append(message)
                learnt.append(on)
        return messages, learnt

    def _is_answered(self, given: Any) -> bool:
        """Whether messages end with an answer."""
        messages, _ = self._messages(given, "messages")
        return bool(messages) and messages[-1]["role"] == "assistant"

    def _message(self, given: Any, name: str) -> tuple[dict[str, Any], float]:
        """A message, and its weight in the loss if it is an answer."""
        if not isinstance(given, dict):
            raise NoConversationError("bad message", f"{name} is no object, but {kind_of(given)}")
        get = self._get(given)
        role = next((get(key) for key in ("role", "from", "speaker") if get(key) is not None), None)
        if not isinstance(role, str):
            raise NoConversationError("bad message", f"{name} has no role")
        known = _ROLES.get(role.strip().lower())
        if known is None:
            raise NoConversationError("bad role", f"{name} has the role {role[:40]!r}")
        content = next((get(key) for key in ("content", "value", "text") if get(key) is not None), None)
        content, reasoning, parts = content_of(content, name)
        if parts and known != "assistant":
            raise NoConversationError("bad content", f"{name} ({role}) holds a call of a tool")
        if known == "call":
            message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls_of(content, name)}
        else:
            message = {"role": known, "content": content}
            given_calls = (get("tool_calls"), get("function_call"), parts)
            calls = next((calls for calls in given_calls if calls not in (None, [], {}, "")), None)
            if known == "assistant" and calls is not None:
                message["tool_calls"] = calls_of(calls, name)
            elif content is None and known != "assistant":
                raise NoConversationError("bad content", f"{name} ({role}) has no content")
        reasoning = next(
            (get(key) for key in ("reasoning_content", "reasoning", "thinking") if isinstance(get(key), str)), reasoning
        )
        if reasoning and reasoning.strip() and known in ("assistant", "call"):
            message["reasoning_content"] = reasoning
        for key in ("tool_call_id", "name"):
            if isinstance(get(key), str) and get(key):
                message[key] = get(key)
        if get("is_error") is True or get("error") not in (None, False, "") or get("status") == "error":
            message["failed"] = True
        weight = weight_of(get("weight") if get("weight") is not None else get("loss_weight"), name)
        return message, weight if all(is_on(get(flag), flag, name) for flag in _FLAGS) else 0.0

    def _preferred(self, prompt: Any, chosen: Any) -> tuple[list[dict[str, Any]], list[float]]:
        """The chosen side of a preference: a conversation, its last message, or text."""
        prompt, chosen = parsed(prompt), parsed(chosen)
        if prompt is None and (said := spoken(chosen)):
            messages, _ = self._messages(said, "messages")
            return messages, [0.0] * (len(messages) - 1) + [1.0]
        prompt = [one for one in spoken(prompt) if one["content"]] or prompt
        before, _ = self._messages(as_messages(prompt, "user", "prompt"), "prompt") if prompt is not None else ([], [])
        after, learnt = self._messages(as_messages(chosen, "assistant", "chosen"), "chosen")
        if before and after[: len(before)] == before:
            after, learnt = after[len(before) :], learnt[len(before) :]
        return [*before, *after], [*[0.0] * len(before), *learnt]

    def _pair(self, values: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[float]]:
        get = self._get(values)
        pair = next((pair for pair in _PAIRS if all(get(name) is not None for name in pair)), None)
        if pair is None:
            raise NoConversationError("no conversation", "it has no messages, and no prompt with its completion")
        asked, answer = (parsed(get(name)) for name in pair)
        if not isinstance(asked, str) or not isinstance(answer, str):
            before, _ = self._messages(as_messages(asked, "user", pair[0]), pair[0])
            after, learnt = self._messages(as_messages(answer, "assistant", pair[1]), pair[1])
            return [*before, *after], [*[0.0] * len(before), *learnt]
        more = get("input")
        if pair[0] == "instruction" and isinstance(more, str) and more.strip():
            asked = f"{asked}\n\n{more}" if self.pairs else f"{asked}\n{more}"
        if not answer.strip():
            raise NoConversationError("empty answer", f"its {pair[1]} is empty")
        earlier = [] if pair in _CONTINUED else history_of(get("history"))
        if pair in _CONTINUED or not self.pairs:
            if pair not in _CONTINUED:
                system = get("system")
                lines = [system] if isinstance(system, str) and system.strip() else []
                # A line each, for there are no words that every model knows between turns.
                asked = "".join(f"{line}\n" for line in (*lines, *itertools.chain(*earlier), asked))
            prompt = {"role": "prompt", "content": asked}
            return [prompt, {"role": "completion", "content": answer}], [0.0, 1.0]
        said = itertools.chain(*earlier, (asked, answer))
        messages = [{"role": role, "content": text} for role, text in zip(itertools.cycle(_SIDES), said, strict=False)]
        return messages, [1.0] * len(messages)
