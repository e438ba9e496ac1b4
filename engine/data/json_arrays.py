"""Reads rows of a JSON array, or objects of many lines, one at a time, and each again by the byte that it begins at."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

_CHUNK = 1 << 16
_SPACE = b" \t\r\n"
_DECODER = json.JSONDecoder()


def is_array(file: BinaryIO) -> bool:
    """Tells whether a file's first character that is no space opens an array. Leaves the file at its start."""
    head = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    file.seek(0)
    return head.startswith(b"[")


def is_spread(file: BinaryIO) -> bool:
    """Tells whether a file begins with an object that goes on behind its bracket's line. Leaves it at its start."""
    head = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    file.seek(0)
    return head.split(b"\n", 1)[0].strip() == b"{" and len(head) > 1


def elements(file: BinaryIO, longest: int) -> Iterator[tuple[int, Any]]:
    """Yields where each element of the array begins, and the element; a comma behind the last one does no harm.

    Raises:
        ValueError: it is no JSON from some element on, one is longer than `longest` bytes, or something follows.
    """
    position = _skipped(file, 0)[0] + 1  # behind the bracket that opens it
    position, mark = _skipped(file, position)
    while mark != b"]":
        if mark == b"":
            raise ValueError("the array is not closed")
        value, length = _read(file, position, longest)
        yield position, value
        position, mark = _skipped(file, position + length)
        if mark == b",":
            position, mark = _skipped(file, position + 1)
        elif mark not in (b"]", b""):
            raise ValueError("no comma stands before it")
    if _skipped(file, position + 1)[1]:
        raise ValueError("something follows the array")


def objects(file: BinaryIO, longest: int) -> Iterator[tuple[int, Any]]:
    """Yields where each of the values begins that follow one another, and the value.

    Raises:
        ValueError: it is no JSON from some value on, or one is longer than `longest` bytes.
    """
    position, mark = _skipped(file, 0)
    while mark:
        value, length = _read(file, position, longest)
        yield position, value
        position, mark = _skipped(file, position + length)


def element_at(file: BinaryIO, position: int, longest: int) -> Any:
    """Reads the element that begins at a byte.

    Raises:
        ValueError: there is none any more.
    """
    return _read(file, position, longest)[0]


def _skipped(file: BinaryIO, position: int) -> tuple[int, bytes]:
    """Returns the place of the first byte from `position` on that is no space, and that byte."""
    file.seek(position)
    while chunk := file.read(_CHUNK):
        rest = chunk.lstrip(_SPACE + (b"\xef\xbb\xbf" if position == 0 else b""))
        if rest:
            return position + len(chunk) - len(rest), rest[:1]
        position += len(chunk)
    return position, b""


def _read(file: BinaryIO, position: int, longest: int) -> tuple[Any, int]:
    """Reads the element at a byte; returns it, and how many bytes it takes."""
    file.seek(position)
    content = b""
    while True:
        chunk = file.read(max(_CHUNK, len(content)))
        content += chunk
        wrong: UnicodeDecodeError | None = None
        try:
            # A character may be cut off at the end of what was read so far.
            text = codecs.utf_8_decode(content, "surrogatepass", not chunk)[0]
        except UnicodeDecodeError as error:
            # The element may end before it.
            text, wrong = content[: error.start].decode("utf-8", "surrogatepass"), error
        try:
            value, end = _DECODER.raw_decode(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except ValueError:
            if wrong is not None:
                raise wrong from None
            if not chunk or len(content) > longest:
                raise
            continue
        # A number may go on in the next chunk; what follows shows that it does not.
        if end < len(text) or wrong is not None or not chunk:
            return value, len(text[:end].encode("utf-8", "surrogatepass"))
