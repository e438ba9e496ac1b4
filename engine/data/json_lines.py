"""JSON Lines: an object a line. What is none says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from engine.data.messages import kind_of

_GZIP = b"\x1f\x8b"


def lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Yields where each line begins, and the line; None for one of more than `longest` bytes."""
    position = 0
    while line := file.readline(longest):
        begin, position = position, position + len(line)
        whole = line.endswith(b"\n") or len(line) < longest
        yield begin, line if whole else None
        while not whole and (line := file.readline(longest)):
            position += len(line)
            whole = line.endswith(b"\n")


def refuse_other_encodings(file: BinaryIO) -> None:
    """Leaves a file at its start.

    Raises:
        ValueError: it is UTF-16 or UTF-32, whose lines end in other bytes, or it is compressed.
    """
    head = file.read(4)
    file.seek(0)
    if head.startswith(_GZIP):
        raise ValueError("it is compressed by gzip, and its name does not end in .gz")
    encoding = json.detect_encoding(head)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"it is {encoding.upper()}, and JSON is UTF-8 (iconv -f {encoding} -t utf-8 makes it so)")


def object_of(line: bytes) -> dict[str, Any]:
    """Returns the object of a line.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(line.decode("utf-8-sig", "surrogatepass"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if isinstance(values, dict):
        return values
    raise ValueError(f"it is {kind_of(values)}, no object" + "; name an array .json" * isinstance(values, list))


def problem_of(error: ValueError) -> str:
    """Says what is wrong with a line."""
    if isinstance(error, UnicodeDecodeError):
        return f"its byte {error.start + 1:,} is no UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at its character {error.pos + 1:,}"
    return str(error).partition(":")[0]
