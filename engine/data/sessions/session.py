"""A session as a conversation, and the messages of one in the making."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUTCOMES = ("resolved", "unresolved", "finished", "unfinished")
"""By a test of the result where one was made; else whether the agent had the last word."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One conversation of an agent.

    Attributes:
        agent: Its program.
        path: The file.
        date: When it began, ISO 8601; "" where nothing says so.
        repository: The folder it worked in, or the repository's name; "" where nothing says so.
        outcome: One of OUTCOMES.
        messages: With roles, calls and results.
    """

    agent: str
    path: Path
    date: str
    repository: str
    outcome: str
    messages: tuple[Mapping[str, Any], ...]

    @property
    def answers(self) -> int:
        """Messages of the agent."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def calls(self) -> int:
        """Calls of tools."""
        return sum(len(message.get("tool_calls") or ()) for message in self.messages)


@dataclass
class Transcript:
    """Messages of a session in the making; what an agent says in several records becomes one message.

    Attributes:
        messages: So far.
        identities: Of the calls so far.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    identities: set[str] = field(default_factory=set)

    def say(self, role: str, text: str) -> None:
        """Adds what a person or the system says; nothing for an empty text."""
        if text.strip():
            self.messages.append({"role": role, "content": text})

    def answer(self, text: str = "", reasoning: str = "", call: Mapping[str, Any] | None = None) -> None:
        """Adds to what the agent says."""
        if not (text.strip() or reasoning.strip() or call):
            return
        last = self.messages[-1] if self.messages else {"role": ""}
        # What is said behind a call is another message: a message's calls come last.
        if last["role"] != "assistant" or (last.get("tool_calls") and text.strip()):
            self.messages.append({"role": "assistant", "content": ""})
        message = self.messages[-1]
        message["content"] = _joined(message["content"], text)
        if reasoning.strip():
            message["reasoning_content"] = _joined(message.get("reasoning_content", ""), reasoning)
        if call is not None:
            message.setdefault("tool_calls", []).append(dict(call))

    def call(self, identity: str, name: str, arguments: Any) -> None:
        """Adds a call of a tool."""
        made = {"id": identity, "type": "function", "function": {"name": name, "arguments": as_arguments(arguments)}}
        self.answer(call=made)
        self.identities.add(identity)

    def result(self, identity: str, text: str, *, failed: bool = False) -> None:
        """Adds what a tool returned."""
        message = {"role": "tool", "tool_call_id": identity, "content": text}
        self.messages.append({**message, "is_error": True} if failed else message)

    def finished(self) -> tuple[Mapping[str, Any], ...]:
        """The messages in which every call has its result, up to the last answer."""
        results: dict[str, list[dict[str, Any]]] = {}
        for message in self.messages:
            if message["role"] == "tool":
                results.setdefault(message["tool_call_id"], []).append(message)
        kept: list[dict[str, Any]] = []
        for message in self.messages:
            if message["role"] == "tool":
                continue  # each stands behind its call
            # Some agents use a name again: the first result is the first call's.
            answered = [
                (call, results[call["id"]].pop(0)) for call in message.get("tool_calls", ()) if results.get(call["id"])
            ]
            calls = [call for call, _ in answered]
            made = {key: value for key, value in message.items() if key != "tool_calls"}
            if calls:
                made["tool_calls"] = calls
            if message["role"] == "assistant" and not calls and not made["content"].strip():
                continue
            kept += [made, *(result for _, result in answered)]
        while kept and kept[-1]["role"] in ("user", "system"):
            kept.pop()
        return tuple(kept)

    @property
    def outcome(self) -> str:
        """Whether the agent had the last word."""
        last = self.messages[-1] if self.messages else {"role": ""}
        return "finished" if last["role"] == "assistant" and not last.get("tool_calls") else "unfinished"


def sessions_of(
    agent: str, path: Path, date: Any, repository: Any, transcript: Transcript, outcome: str = ""
) -> Iterator[Session]:
    """Yields the session that a transcript makes; none without an answer."""
    messages = transcript.finished()
    if not any(message["role"] == "assistant" for message in messages):
        return
    yield Session(
        agent=agent,
        path=path,
        date=date if isinstance(date, str) else "",
        repository=repository if isinstance(repository, str) else "",
        outcome=outcome or transcript.outcome,
        messages=messages,
    )


def _joined(before: str, text: str) -> str:
    return f"{before}\n\n{text}" if before.strip() and text.strip() else before or text


def as_arguments(given: Any) -> dict[str, Any]:
    """The arguments of a call as an object: a text that is no JSON object is its "input"."""
    if isinstance(given, str):
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {"input": given}
    return dict(given) if isinstance(given, dict) else {}


def text_of(content: Any) -> str:
    """The text of a message's content: text, or the texts among its parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return text_of(content.get("text", content.get("content", "")))
    if isinstance(content, list):
        return "\n".join(filter(None, (text_of(part) for part in content)))
    return ""


def tools_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Definitions of the tools that a session calls, as far as its calls tell: agents do not write theirs down."""
    known: dict[str, dict[str, dict[str, str]]] = {}
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            fields = known.setdefault(function["name"], {})
            for key, value in function["arguments"].items():
                fields.setdefault(key, {"type": kinds.get(type(value), "string")})
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                # gpt-oss' template reads it of every tool.
                "description": "",
                "parameters": {"type": "object", "properties": dict(sorted(fields.items()))},
            },
        }
        for name, fields in sorted(known.items())
    ]
