"""The files of Claude Code, Codex, SWE-agent, mini-swe-agent and OpenHands. Unknown records are passed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.data.sessions.codex import read_codex
from engine.data.sessions.records import Record, json_of, name_of, object_of, objects_of
from engine.data.sessions.session import Session, Transcript, sessions_of, text_of


def read_sessions(path: Path, content: bytes) -> Iterator[Session]:
    """The sessions in a file; none where it is no agent's.

    Args:
        path: Of the file.
        content: Its bytes.
    """
    if path.suffix == ".jsonl":
        records = [record for line in content.splitlines() if isinstance(record := json_of(line), dict)]
        if any(record.get("type") in ("session_meta", "response_item") for record in records):
            yield from read_codex(path, records)
        elif any(_blocks(record) is not None for record in records):
            yield from _claude_code(path, records)
        else:
            for record in records:
                yield from _trajectory(path, record)
        return
    whole = json_of(content)
    if isinstance(whole, list) and ".traj" in path.name and any("role" in message for message in objects_of(whole)):
        yield from _swe_agent("mini-swe-agent", path, {}, whole, {})
    elif isinstance(whole, list):
        yield from _openhands(path, {}, objects_of(whole))
    elif isinstance(whole, dict) and "loglines" in whole:
        yield from _claude_code(path, objects_of(whole["loglines"]))
    elif isinstance(whole, dict):
        yield from _trajectory(path, whole)


# --- Claude Code: ~/.claude/projects/<folder>/<session>.jsonl ------------------------------------------------


def _claude_code(path: Path, records: Sequence[Record]) -> Iterator[Session]:
    """A conversation for each stretch between compactions, after which the agent goes on from a summary.

    Where no record names the one before it, as in what other programs export, they stand in the file's order. So does
    one that names a record which the file does not hold: a boundary of a compaction often does.
    """
    records = [record for record in records if not _in_side_chain(record)]
    spoken = [record for record in records if _blocks(record) is not None]
    by_name = {name: record for record in records if (name := name_of(record.get("uuid")))}
    before = _spoken_before(records)
    if not spoken:
        return
    linked = any(name_of(record.get("parentUuid")) in by_name for record in records)
    leaf: Record | None = spoken[-1] if linked else None
    stretches = [] if linked else [spoken]
    seen: set[str] = set()
    while leaf is not None:
        chain: list[Record] = []
        at: Record | None = leaf
        while at is not None and name_of(at.get("uuid")) not in seen:
            chain.append(at)
            seen.add(name_of(at.get("uuid")))
            parent = name_of(at.get("parentUuid"))
            at = by_name.get(parent, before[id(at)] if parent else None)
        root = chain[-1] if chain else {}
        parent = name_of(root.get("logicalParentUuid"))
        leaf = by_name.get(parent, before[id(root)] if parent else None)
        stretches.append(_with_results(spoken, chain))
    for stretch in reversed(stretches):
        transcript = Transcript()
        for record in stretch:
            _say_claude_code(transcript, record)
        first = stretch[0] if stretch else {}
        yield from sessions_of("Claude Code", path, first.get("timestamp"), first.get("cwd"), transcript)


def _in_side_chain(record: Record) -> bool:
    """Whether another agent says it, which a call of the session's own has started."""
    return bool(record.get("isSidechain") or record.get("parent_tool_use_id"))


def _spoken_before(records: Sequence[Record]) -> dict[int, Record | None]:
    """The last message before each record in the file, by the identity of its object."""
    found: dict[int, Record | None] = {}
    last: Record | None = None
    for record in records:
        found[id(record)] = last
        last = record if _blocks(record) is not None else last
    return found


def _blocks(record: Record) -> list[Any] | None:
    """What a record's message is made of; None for one that is no message, or that no model and no person wrote."""
    message = record.get("message")
    if record.get("type") not in ("user", "assistant") or record.get("isMeta") or not isinstance(message, dict):
        return None
    # Errors of the API and "No response requested." stand in an answer's place.
    if record.get("isApiErrorMessage") is True or message.get("model") == "<synthetic>":
        return None
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else None


def _with_results(spoken: Sequence[Record], chain: Sequence[Record]) -> list[Record]:
    """The records of a chain in the file's order, with what belongs to them: parts of one answer, results of calls."""
    names = {name_of(record.get("uuid")) for record in chain}
    answers = {
        name_of(object_of(record.get("message")).get("id")) for record in chain if record.get("type") == "assistant"
    }
    answers.discard("")
    kept = [
        record
        for record in spoken
        if name_of(record.get("uuid")) in names
        or (record["type"] == "assistant" and name_of(record["message"].get("id")) in answers)
    ]
    calls = {str(part.get("id")) for record in kept for part in _blocks(record) or () if part.get("type") == "tool_use"}
    names |= {name_of(record.get("uuid")) for record in kept}

    def belongs(record: Record) -> bool:
        results = [str(part.get("tool_use_id")) for part in _blocks(record) or () if part.get("type") == "tool_result"]
        return name_of(record.get("uuid")) in names or (bool(results) and calls.issuperset(results))

    return [record for record in spoken if belongs(record)]


def _say_claude_code(transcript: Transcript, record: Record) -> None:
    for part in _blocks(record) or ():
        kind = part.get("type")
        if record["type"] == "assistant":
            if kind == "tool_use":
                transcript.call(str(part.get("id")), str(part.get("name")), part.get("input"))
            elif kind == "thinking":
                transcript.answer(reasoning=str(part.get("thinking") or ""))
            elif kind == "text":
                transcript.answer(str(part.get("text") or ""))
        elif kind == "tool_result":
            failed = part.get("is_error") is True
            transcript.result(str(part.get("tool_use_id")), text_of(part.get("content")), failed=failed)
        elif kind == "text":
            transcript.say("user", str(part.get("text") or ""))


# --- SWE-agent, mini-swe-agent and OpenHands -------------------------------------------------------------------


def _trajectory(path: Path, record: Record) -> Iterator[Session]:
    history = record.get("history")
    info = object_of(record.get("info"))
    mini = isinstance(record.get("trajectory_format"), str)
    if mini or (isinstance(history, list) and any(isinstance(one, dict) and "role" in one for one in history)):
        agent = "mini-swe-agent" if mini else "SWE-agent"
        yield from _swe_agent(agent, path, record, record.get("messages") if mini else history, info)
        return
    events = history if isinstance(history, list) else record.get("trajectory")
    if isinstance(events, list):
        yield from _openhands(path, record, [event for event in events if isinstance(event, dict)])


def _swe_agent(agent: str, path: Path, record: Record, messages: Any, info: Record) -> Iterator[Session]:
    transcript = Transcript()
    waiting: list[str] = []
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant", "tool"):
            continue
        text = text_of(message.get("content"))
        if message["role"] == "assistant":
            reasoning = message.get("reasoning_content")
            transcript.answer(text, reasoning if isinstance(reasoning, str) else "")
            calls = objects_of(message.get("tool_calls"))
            waiting = [str(call.get("id") or f"call_{number}_{place}") for place, call in enumerate(calls)]
            for identity, call in zip(waiting, calls, strict=True):
                function = object_of(call.get("function")) or call
                transcript.call(identity, str(function.get("name") or "bash"), function.get("arguments"))
        elif message["role"] == "tool" or message.get("tool_call_ids"):
            several = message.get("tool_call_ids")
            named = message.get("tool_call_id") or (several[0] if isinstance(several, list) and several else None)
            transcript.result(str(named or (waiting.pop(0) if waiting else "")), text)
        else:
            transcript.say(message["role"], text)
    resolved = record.get("resolved", info.get("resolved"))
    status = str(info.get("exit_status") or "")
    outcome = _resolved(resolved) or ("finished" if status.lower().startswith("submitted") else "unfinished")
    name = record.get("repo") or record.get("instance_id") or path.name.partition(".")[0]
    yield from sessions_of(agent, path, record.get("timestamp"), name, transcript, outcome)


def _openhands(path: Path, record: Record, events: Sequence[Record]) -> Iterator[Session]:
    transcript = Transcript()
    if not any("kind" in event or "source" in event for event in events):
        return
    for event in events:
        if isinstance(event.get("kind"), str):
            _say_openhands(transcript, event)
        else:
            _say_openhands_before(transcript, event)
    outcome = _resolved(record.get("resolved"))
    date = next((event["timestamp"] for event in events if isinstance(event.get("timestamp"), str)), None)
    name = record.get("repo") or record.get("instance_id") or path.name.partition(".")[0]
    yield from sessions_of("OpenHands", path, date, name, transcript, outcome)


def _say_openhands(transcript: Transcript, event: Record) -> None:
    """Events of OpenHands' SDK, which name their kind."""
    kind = event["kind"]
    if kind == "SystemPromptEvent":
        transcript.say("system", text_of(event.get("system_prompt")))
    elif kind == "MessageEvent":
        message = event.get("llm_message")
        text = text_of(message.get("content")) if isinstance(message, dict) else ""
        if event.get("source") == "agent":
            transcript.answer(text)
        else:
            transcript.say("user", text)
    elif kind == "ActionEvent":
        reasoning = event.get("reasoning_content")
        transcript.answer(text_of(event.get("thought")), reasoning if isinstance(reasoning, str) else "")
        call = event.get("tool_call")
        arguments = call.get("arguments", call.get("function", {})) if isinstance(call, dict) else None
        if isinstance(arguments, dict) and "arguments" in arguments:
            arguments = arguments["arguments"]
        if arguments in (None, {}):
            action = event.get("action")
            arguments = {k: v for k, v in action.items() if k != "kind"} if isinstance(action, dict) else {}
        transcript.call(str(event.get("tool_call_id")), str(event.get("tool_name") or "tool"), arguments)
    elif kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        found = object_of(event.get("observation"))
        text = text_of(found.get("content", found.get("output"))) or str(
            event.get("error") or event.get("rejection_reason") or ""
        )
        failed = kind == "AgentErrorEvent" or found.get("is_error") is True or found.get("exit_code") not in (None, 0)
        transcript.result(str(event.get("tool_call_id")), text, failed=failed)


def _say_openhands_before(transcript: Transcript, event: Record) -> None:
    """Events of OpenHands before its SDK: actions and observations."""
    metadata = object_of(event.get("tool_call_metadata"))
    identity = str(metadata.get("tool_call_id") or event.get("cause", event.get("id")))
    arguments = object_of(event.get("args"))
    if "observation" in event:
        extras = object_of(event.get("extras"))
        about = object_of(extras.get("metadata")) or extras
        failed = event["observation"] == "error" or about.get("exit_code") not in (None, 0, -1)
        if identity in transcript.identities:
            transcript.result(identity, text_of(event.get("content")), failed=failed)
    elif event.get("action") in ("message", "system"):
        text = text_of(arguments.get("content"))
        if event.get("source") == "agent" and event["action"] == "message":
            transcript.answer(text)
        else:
            transcript.say("system" if event["action"] == "system" else "user", text)
    elif event.get("source") == "agent" and isinstance(event.get("action"), str):
        _call_openhands_before(transcript, event, metadata, identity, arguments)


def _call_openhands_before(
    transcript: Transcript, event: Record, metadata: Record, identity: str, arguments: Record
) -> None:
    if event["action"] == "finish":
        said = arguments.get("final_thought") or arguments.get("message") or event.get("message")
        transcript.answer(text_of(said) or "Done.")
        return
    thought = text_of(arguments.get("thought"))
    given: Any = {key: value for key, value in arguments.items() if key in _TOLD and value not in (None, "")}
    for choice in _choices(metadata):
        for call in objects_of(choice.get("tool_calls")):
            if call.get("id") == metadata.get("tool_call_id"):
                given = call["function"].get("arguments") if isinstance(call.get("function"), dict) else given
        thought = text_of(choice.get("content")) or thought
    transcript.answer(thought)
    transcript.call(identity, str(metadata.get("function_name") or event["action"]), given)


_TOLD = (
    "command",
    "path",
    "content",
    "code",
    "url",
    "query",
    "start",
    "end",
    "old_str",
    "new_str",
    "file_text",
    "agent",
)
"""Arguments of actions that the agent itself gives."""


def _choices(metadata: Record) -> Iterator[Record]:
    for choice in objects_of(object_of(metadata.get("model_response")).get("choices")):
        if isinstance(choice.get("message"), dict):
            yield choice["message"]


def _resolved(value: Any) -> str:
    return "" if not isinstance(value, bool | int) else "resolved" if value else "unresolved"
