"""Reads rows of a JSON array, or objects of many lines, one at a time, and each again by the byte that it begins at."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from engine.data.json_lines import RowDecoder

_CHUNK = 1 << 16
_SPACE = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*")
_INSIDE = re.compile(rb"[ \t\r\n]*")
_DECODER = RowDecoder()
_TAIL = 12
"""Characters that a name, number or escape may be short of at the end of what was read."""


class JsonWindow:
    """A part of a file, which moves forward without reading anything again.

    A compressed file is decompressed from its start whenever it is sought backwards.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._content = file, b""
        self._start = self._at = 0
        "Place in the file of the first byte that is held, and of the next one in what is held."
        self._file.seek(0)

    @property
    def position(self) -> int:
        """The next byte's place in the file."""
        return self._start + self._at

    def seek(self, position: int) -> None:
        """Moves to a byte."""
        if self._start <= position <= self._start + len(self._content):
            self._at = position - self._start
        else:
            self._file.seek(position)
            self._start, self._at, self._content = position, 0, b""

    def first(self) -> bytes:
        """Moves to the next byte that is no space, and returns it; b"" at the end."""
        while True:
            space = _INSIDE if self.position else _SPACE
            found = space.match(self._content, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._content) or not self._more():
                return self._content[self._at : self._at + 1]

    def skip(self) -> None:
        """Moves on by a byte."""
        self._at += 1

    def value(self, longest: int) -> Any:
        """Reads a value of JSON, and moves behind it. `Repeated` stands for one that names a field twice.

        Raises:
            ValueError: it is none, or longer than `longest` bytes.
        """
        size = _CHUNK
        while True:
            while len(self._content) - self._at < size and self._more():
                pass
            content = self._content[self._at : self._at + size]
            last = len(content) < size
            wrong: UnicodeDecodeError | None = None
            try:
                # A character may be cut off at the end of what was read so far.
                text = codecs.utf_8_decode(content, "surrogatepass", last)[0]
            except UnicodeDecodeError as error:
                # The value may end before it.
                text, wrong = content[: error.start].decode("utf-8", "surrogatepass"), error
            try:
                value, end = _DECODER.raw_decode(text)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except json.JSONDecodeError as error:
                ends = error.pos >= len(text) - _TAIL or error.msg.startswith("Unterminated string")
                if wrong is not None and ends:
                    raise wrong from None
                if last or not ends or size > longest:
                    raise
                size *= 2
                continue
            # A number may go on in the next chunk, as 0. and 1e- do; what follows shows that it does not.
            if end <= len(text) - _TAIL or wrong is not None or last:
                self._at += len(text[:end].encode("utf-8", "surrogatepass"))
                return value
            size *= 2

    def _more(self) -> bool:
        """Reads on; drops what lies behind."""
        chunk = self._file.read(max(_CHUNK, len(self._content) - self._at))
        self._content = self._content[self._at :] + chunk
        self._start, self._at = self._start + self._at, 0
        return bool(chunk)


def is_array(file: BinaryIO) -> bool:
    """Tells whether a file's first character that is no space opens an array. Leaves the file at its start."""
    found = JsonWindow(file).first() == b"["
    file.seek(0)
    return found


def is_spread(file: BinaryIO, longest: int) -> bool:
    """Tells whether a file's first object takes several lines. Leaves the file at its start."""
    window = JsonWindow(file)
    try:
        begins = window.first() == b"{"
        start = window.position
        file.seek(start)
        line = file.readline(longest) if begins else b""
        if not begins or line.strip() == b"{":
            return begins and bool(file.read(1))
        if not line.endswith(b"\n"):
            return False
        window = JsonWindow(file)
        window.seek(start)
        window.value(longest)
        return window.position > start + len(line)
    except ValueError:
        return False
    finally:
        file.seek(0)


def elements(file: BinaryIO, longest: int) -> Iterator[tuple[int, Any]]:
    """Yields where each element of the array begins, and the element; a comma behind the last one does no harm.

    Raises:
        ValueError: it is no JSON from some element on, one is longer than `longest` bytes, or something follows.
    """
    window = JsonWindow(file)
    window.first()
    window.skip()  # the bracket that opens it
    mark = window.first()
    while mark != b"]":
        if mark == b"":
            raise ValueError("the array is not closed")
        position = window.position
        yield position, window.value(longest)
        mark = window.first()
        if mark == b",":
            window.skip()
            mark = window.first()
        elif mark not in (b"]", b""):
            raise ValueError("no comma stands before it")
    window.skip()
    if window.first():
        raise ValueError("something follows the array")


def objects(file: BinaryIO, longest: int) -> Iterator[tuple[int, Any]]:
    """Yields where each of the values begins that follow one another, and the value.

    Raises:
        ValueError: it is no JSON from some value on, or one is longer than `longest` bytes.
    """
    window = JsonWindow(file)
    while window.first():
        position = window.position
        yield position, window.value(longest)
