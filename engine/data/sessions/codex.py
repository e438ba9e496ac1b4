"""Reads the files of Codex. Unknown records are passed over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.data.sessions.records import Record, json_of, objects_of
from engine.data.sessions.session import Session, Transcript, sessions_of, text_of

_CALLS = ("function_call", "custom_tool_call", "local_shell_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_EXIT = re.compile(
    r"(?:(?:Chunk ID|Wall time): [^\n]*\n)*(?:Exit code: |Process exited with code )(-?\d+)\n"
    r"(?:[^\n]{0,99}\n){0,3}Output:"
)
"""What stands above a command's output, which may itself say such things."""
_NO_REQUESTS = (
    "<environment_context>",
    "<user_instructions>",
    "# AGENTS.md instructions",
    "<skill>",
    "<user_shell_command>",
    "<turn_aborted>",
    "<subagent_notification>",
)
"""How messages begin that Codex itself writes as the user."""


def read_codex(path: Path, records: Sequence[Record]) -> Iterator[Session]:
    """Reads the sessions of a file, ~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl; a compaction begins another.

    Args:
        path: Of the file.
        records: Its lines.
    """
    transcript = Transcript()
    about: Record = {}
    began: Any = None
    for record in records:
        payload = record.get("payload")
        payload = payload if isinstance(payload, dict) else record
        kind = record.get("type")
        if kind == "session_meta":
            if not about:
                about, began = payload, payload.get("timestamp")
                transcript.say("system", _instructions(about))
        elif kind == "response_item" or "payload" not in record:
            _say_codex(transcript, payload)
        elif kind == "compacted" and text_of(payload.get("message")).strip():
            yield from sessions_of("Codex", path, began, about.get("cwd"), transcript)
            transcript, began = _compacted(transcript, _instructions(about), payload), record.get("timestamp")
        elif kind == "event_msg" and payload.get("type") == "thread_rolled_back":
            _take_back(transcript, payload.get("num_turns"))
    yield from sessions_of("Codex", path, began, about.get("cwd"), transcript)


def _instructions(about: Record) -> str:
    return text_of(about.get("base_instructions") or about.get("instructions"))


def _compacted(before: Transcript, instructions: str, payload: Record) -> Transcript:
    """What a session goes on from: what people said so far, or the part that Codex kept, and a summary."""
    after = Transcript()
    history = objects_of(payload.get("replacement_history"))
    if history:
        after.say("system", instructions)
        for item in history:
            if item.get("role") in ("system", "developer", "user"):
                _say_codex(after, item)
    else:
        after.messages = [message for message in before.messages if message["role"] in ("system", "user")]
    summary = text_of(payload.get("message"))
    if not any(summary.strip() in message["content"] for message in after.messages):
        after.say("user", summary)
    return after


def _take_back(transcript: Transcript, turns: Any) -> None:
    """Takes the last requests out, with all that followed from them."""
    requests = [
        place
        for place, message in enumerate(transcript.messages)
        if message["role"] == "user" and not message["content"].lstrip().startswith(_NO_REQUESTS)
    ]
    if isinstance(turns, int) and turns > 0 and requests:
        del transcript.messages[requests[max(0, len(requests) - turns)] :]


def _say_codex(transcript: Transcript, item: Record) -> None:
    kind = item.get("type")
    if kind in ("message", None) and item.get("role") == "assistant":
        transcript.answer(text_of(item.get("content")))
    elif kind == "message" or (kind is None and "role" in item):
        role = "system" if item.get("role") in ("system", "developer") else "user"
        transcript.say(role, text_of(item.get("content")))
    elif kind == "reasoning":
        transcript.answer(reasoning=text_of(item.get("content")) or text_of(item.get("summary")))
    elif kind in _CALLS:
        arguments = item.get("arguments", item.get("input", item.get("action")))
        transcript.call(str(item.get("call_id")), str(item.get("name") or "shell"), arguments)
    elif kind in _OUTPUTS:
        output = item.get("output")
        found = json_of(output.encode("utf-8", "replace")) if isinstance(output, str) else output
        failed = False
        if isinstance(found, dict):
            about = found.get("metadata")
            code = about.get("exit_code") if isinstance(about, dict) else None
            failed = code not in (None, 0) or found.get("success") is False
            output = found.get("output", found.get("content", output))
        text = text_of(output)
        told = _EXIT.match(text)
        failed = failed or (told is not None and int(told[1]) != 0)
        transcript.result(str(item.get("call_id")), text, failed=failed)
