"""Finds sessions on this machine, chooses among them, and makes rows of them without secrets and home folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from engine.data.conversations import Conversation, RowReader
from engine.data.documents import Edit, conversation_document, edited_conversation
from engine.data.messages import NoConversationError
from engine.data.safe_files import Folder, NotRegularError
from engine.data.secrets import PLACEHOLDER, SearchTooLongError, find_secrets
from engine.data.sessions.formats import read_sessions
from engine.data.sessions.session import Session, tools_of
from engine.home_folder import expand_home

PLACES = (".claude/projects", ".codex/sessions")
"""Below the home folder."""
LARGEST = 256 << 20
"""Bytes of one file."""
_ENDINGS = (".jsonl", ".traj", ".traj.json", ".trajectory.json", ".json")
_SLASH = r"(?:\\{0,8}/|%2F)"
"""As JSON and addresses may spell it."""
_PERSON = r"[^/\\\s\"':;,<>|*?`()\[\]{}%]+"
_HOME = re.compile(
    rf"(?i:(?:{_SLASH}export)?{_SLASH}home{_SLASH}|[A-Z](?::|%3A)(?:\\{{1,8}}|%5C)Users(?:\\{{1,8}}|%5C)){_PERSON}"
    rf"|{_SLASH}Users{_SLASH}{_PERSON}|{_SLASH}root(?=[/\\\s\"':;,)%]|$)"
)
_FOLDED = re.compile(r"-(?:home|Users)-[A-Za-z0-9_.]+(?=-|/|$)")
"""A home folder as Claude Code names its projects."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which sessions are wanted; what is empty does not choose."""

    repository: str = ""
    "Part of its folder or name."
    since: str = ""
    "ISO date, included."
    until: str = ""
    outcomes: tuple[str, ...] = ()

    def takes(self, session: Session) -> bool:
        """Whether a session is wanted."""
        day = session.date[:10]
        return (
            self.repository.lower() in session.repository.lower()
            and (not self.since or (day >= self.since and bool(day)))
            and (not self.until or (day <= self.until and bool(day)))
            and (not self.outcomes or session.outcome in self.outcomes)
        )


@dataclass
class Found:
    """Sessions, and what was left out.

    Attributes:
        sessions: The wanted ones, by date.
        files: That were read.
        skipped: Reason → files or sessions.
    """

    sessions: list[Session] = field(default_factory=list)
    files: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def find_sessions(places: Sequence[Path], choice: Choice) -> Found:
    """Reads the sessions below folders, or in files. Nothing is written, and no link is followed.

    Args:
        places: Empty for those of Claude Code and Codex in the home folder.
        choice: Which are wanted.
    """
    found = Found()
    for path in _files(list(places) or [Path.home() / place for place in PLACES]):
        found.files += 1
        try:
            content = Folder(str(path.parent)).read(PurePosixPath(path.name), LARGEST + 1)
        except (NotRegularError, OSError):
            found.skipped["not a readable file"] += 1
            continue
        if len(content) > LARGEST:
            found.skipped["too large"] += 1
            continue
        sessions = list(read_sessions(path, content))
        if not sessions:
            found.skipped["no session"] += 1
        for session in sessions:
            if choice.takes(session):
                found.sessions.append(session)
            else:
                found.skipped["not chosen"] += 1
    found.sessions.sort(key=lambda session: (session.date, str(session.path)))
    return found


def _files(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        path = expand_home(place)
        if path.is_file():
            yield path
            continue
        for here, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                if name.endswith(_ENDINGS) and not name.endswith(".meta.json"):
                    yield Path(here) / name


def session_row(session: Session) -> tuple[dict[str, Any], int] | None:
    """A session as a row of a data set, with the number of secrets masked in it; None for one that cannot be searched.

    Home folders become ~, in paths and in what was said.
    """
    try:
        messages = [_without_homes_in_names(message) for message in session.messages]
        conversation = RowReader({}).read({"messages": messages, "tools": tools_of(messages)})
    except NoConversationError:
        return None
    document = conversation_document(conversation)
    try:
        # Output of tools holds files of any language: values without quotation marks count as well.
        secrets = find_secrets(document.text, "YAML")
    except SearchTooLongError:
        return None
    edits = [Edit(secret.start, secret.end, PLACEHOLDER) for secret in secrets]
    masked = edited_conversation(document, edits)
    masked = masked.with_texts([without_home(text) for text in masked.texts()])
    row = {
        "messages": _marked(masked, session),
        **({"tools": list(masked.tools)} if masked.tools else {}),
        "agent": session.agent,
        "repository": without_home(session.repository),
        "date": session.date,
        "outcome": session.outcome,
    }
    return row, len(secrets)


def _marked(conversation: Conversation, session: Session) -> list[dict[str, Any]]:
    """The messages, with the errors of tools marked, so that `data.mask_errors` finds them."""
    return [
        {**message, "is_error": True} if given.get("is_error") else dict(message)
        for message, given in zip(conversation.messages, session.messages, strict=True)
    ]


def _without_homes_in_names(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message whose calls name no home folder in the keys of their arguments, as a patch of several files does."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": _renamed(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {without_home(key): _renamed(inner) for key, inner in value.items()}
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value


def without_home(text: str) -> str:
    """A text in which the home folders of people are ~."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=[/\s\"':;,)]|$)", "~", text)
    return _FOLDED.sub("-~", _HOME.sub("~", text))
