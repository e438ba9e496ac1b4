"""A source as the text that the model reads: a line with its path, its content, an end mark."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.charset import decode
from engine.data.collect import SourceFile
from engine.data.conversations import Conversation
from engine.data.filters import is_binary
from engine.data.history import Commit, read_commit
from engine.data.languages import NOTEBOOK
from engine.data.line_ends import ends_in_crlf, with_line_feeds
from engine.data.notebooks import NOTEBOOK_BYTES, NotebookError, cells_as_text
from engine.data.rows import DataSet, Row
from engine.data.safe_files import Folder, NotRegularError
from engine.data.secrets import masked_name


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read."""

    text: str
    digest: bytes
    "SHA-256 of the file's bytes, 32 bytes."
    had_crlf: bool = False
    "Whether every line of the file ended as on Windows; its text ends them as git stores them."
    conversation: Conversation | None = None
    "Whose texts make up `text`, a line after each."


class Texts:
    """Reads sources, any number of times. A file that has changed in between shows by its digest.

    Args:
        roots: Repositories.
        max_file_bytes: Longer sources are too large.
        data_sets: By their path.
    """

    def __init__(
        self, roots: Iterable[Path], max_file_bytes: int, data_sets: Mapping[Path, DataSet] | None = None
    ) -> None:
        self._folders = {root: Folder(str(root)) for root in roots}
        self._max_file_bytes = max_file_bytes
        self._data_sets = data_sets or {}

    def read(self, file: SourceFile) -> Document | str:
        """The source as text, or the reason (a key of engine.data.filters.REASONS) to leave it out after all."""
        if isinstance(file, Row):
            content = self._data_sets[file.repository].read(file)
            return conversation_document(content) if isinstance(content, Conversation) else self.document(content)
        if isinstance(file, Commit):
            return self.document(read_commit(file, self._max_file_bytes))
        return read_document(self._folders[file.repository], file, self._max_file_bytes)

    def document(self, text: str | None) -> Document | str:
        """A text that is no file's, or the reason to leave it out."""
        if text is None:
            return "missing"
        # JSON may spell out half of a character outside the basic plane, which is no text.
        content = text.encode("utf-8", "replace")
        if len(content) > self._max_file_bytes:
            return "too large"
        return Document(content.decode(), hashlib.sha256(content).digest()) if text.strip() else "empty"


_VALUE = re.compile(r"[^\s\"'\\]+")
"""What may be a secret as it stands, whose key alone tells that it is one."""


def conversation_document(conversation: Conversation) -> Document:
    """A conversation as a document: its texts, each with a line end behind it.

    A single word among a call's arguments stands behind its key, as JSON writes it.
    """
    # JSON may spell out half of a character outside the basic plane, which is no text.
    texts = [text.encode("utf-8", "replace").decode() for text in conversation.texts()]
    whole = conversation.with_texts(texts)
    lines = (f"{before}{text}{after}\n" for before, text, after in _as_searched(whole))
    return Document("".join(lines), whole.digest(), conversation=whole)


def _as_searched(conversation: Conversation) -> Iterator[tuple[str, str, str]]:
    """What stands before a text, the text, and what stands behind it."""
    for name, text in conversation.named_texts():
        if _VALUE.fullmatch(name) and _VALUE.fullmatch(text):
            yield f'"{name.encode("utf-8", "replace").decode()}": "', text, '"'
        else:
            yield "", text, ""


def edited_conversation(document: Document, edits: Sequence[Edit]) -> Conversation:
    """A document's conversation with pieces of its texts replaced. Raises ValueError: it is no conversation."""
    if document.conversation is None:
        raise ValueError("no conversation")
    if not edits:
        return document.conversation
    texts, start = [], 0
    for before, text, after in _as_searched(document.conversation):
        start += len(before)
        end = start + len(text)
        # A secret that reaches over several texts is taken out of each.
        inside = [
            Edit(max(edit.start, start) - start, min(edit.end, end) - start, edit.replacement)
            for edit in edits
            if edit.start < end and edit.end > start
        ]
        texts.append(edited(text, inside))
        start = end + len(after) + 1
    return document.conversation.with_texts(texts)


@dataclass(frozen=True, slots=True)
class Edit:
    """A piece of a text that is replaced."""

    start: int
    end: int
    replacement: str = ""


def edited(text: str, edits: Sequence[Edit]) -> str:
    """The text with its pieces replaced. `edits` are in order and do not overlap."""
    if not edits:
        return text
    pieces = []
    position = 0
    for edit in edits:
        pieces += [text[position : edit.start], edit.replacement]
        position = edit.end
    return "".join([*pieces, text[position:]])


def read_document(folder: Folder, file: SourceFile, max_file_bytes: int) -> Document | str:
    """The file as text, or the reason (a key of engine.data.filters.REASONS) to leave it out after all."""
    limit = NOTEBOOK_BYTES if file.language == NOTEBOOK else max_file_bytes
    try:
        content = folder.read(file.path, limit + 1)
    except NotRegularError as error:
        return str(error)
    if len(content) > limit:
        return "too large"
    if is_binary(content):
        return "binary"
    text = decode(content)
    if text is None:
        return "encoding"
    if file.language == NOTEBOOK:
        try:
            text = cells_as_text(text)
        except NotebookError:
            return "notebook"
        if len(text) > max_file_bytes:
            return "too large"
    if not text.strip():
        return "empty"
    if has_conflict(text):
        return "conflict"
    had_crlf = ends_in_crlf(text)
    return Document(with_line_feeds(text) if had_crlf else text, hashlib.sha256(content).digest(), had_crlf)


def has_conflict(text: str) -> bool:
    """Whether a text holds both sides of a merge that was not finished."""
    start = 0 if text.startswith("<<<<<<< ") else text.find("\n<<<<<<< ")
    middle = text.find("\n=======\n", start) if start >= 0 else -1
    middle = text.find("\n=======\r\n", start) if middle < 0 <= start else middle
    return middle >= 0 and text.find("\n>>>>>>> ", middle) >= 0


def path_line(file: SourceFile) -> str:
    """The document's first line, without its end: the path, printable and valid Unicode whatever its bytes were.

    Tokens in it are masked, whatever `data.secrets` says: no name is worth one.
    """
    return masked_name(spelled_out(file.name))


def spelled_out(name: str) -> str:
    """Spells out what cannot be shown in a name."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
