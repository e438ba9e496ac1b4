"""A source as the text that the model reads: a line with its path, its content, an end mark."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.collect import SourceFile
from engine.data.filters import is_binary
from engine.data.history import Commit, read_commit
from engine.data.languages import NOTEBOOK
from engine.data.notebooks import NOTEBOOK_BYTES, NotebookError, cells_as_text
from engine.data.rows import DataSet, Row
from engine.data.safe_files import Folder, NotRegularError

_PYTHON_ENCODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_UNLIKELY_IN_LATIN_1 = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_MOST_ACCENTED = 0.1
"Share of bytes above ASCII up to which a file that is not UTF-8 passes for Latin-1; text in Cyrillic has more."


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read."""

    text: str
    digest: bytes
    "SHA-256 of the file's bytes, 32 bytes."


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
            return self.document(self._data_sets[file.repository].text(file))
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
    text = decode(content, file.language)
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
    return Document(text, hashlib.sha256(content).digest())


def has_conflict(text: str) -> bool:
    """Whether a text holds both sides of a merge that was not finished."""
    start = 0 if text.startswith("<<<<<<< ") else text.find("\n<<<<<<< ")
    middle = text.find("\n=======\n", start) if start >= 0 else -1
    middle = text.find("\n=======\r\n", start) if middle < 0 <= start else middle
    return middle >= 0 and text.find("\n>>>>>>> ", middle) >= 0


def decode(content: bytes, language: str) -> str | None:
    """Bytes as text: by their byte order mark, as UTF-8, as a Python file says, or as Latin-1; else None.

    Encoding the text again gives the same bytes, but for the mark.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode(content, "utf-16")
    text = _decode(content, "utf-8-sig")
    if text is None and language == "Python":
        for line in content.split(b"\n", 2)[:2]:
            named = _PYTHON_ENCODING.match(line)
            if named:
                return _decode(content, named.group(1).decode("ascii"))
    if text is None and not _UNLIKELY_IN_LATIN_1.search(content):
        accented = len(content) - len(content.translate(None, bytes(range(128, 256))))
        if accented <= _MOST_ACCENTED * len(content):
            return content.decode("latin-1")
    return text


def _decode(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except (UnicodeError, LookupError):
        # LookupError: a file names an encoding that does not exist, or one that does not make text.
        return None


def path_line(file: SourceFile) -> str:
    """The document's first line, without its end: the path, printable and valid Unicode whatever its bytes were."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in file.name)
