"""JSON Lines: an object a line. What is none says why."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from engine.data.messages import kind_of


class Repeated:
    """Stands for an object that gives a field two texts, lists or objects, in itself or within: one would be lost."""

    def __init__(self, name: str) -> None:
        self.problem = f"it names {name!r:.60} twice"


class RepeatedError(ValueError):
    """An object names a field twice."""


class _Found(threading.local):
    """What a thread has found in the row that it reads; a form looks at one folder while another is read."""

    repeated: Repeated | None = None


class RowDecoder(json.JSONDecoder):
    """Reads JSON: of a field that is given twice the last value, or `Repeated` in place of all where text is lost."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self._found = _Found()

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """See JSONDecoder."""
        self._found.repeated = None
        value, end = super().raw_decode(s, idx)
        return self._found.repeated or value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and self._found.repeated is None:
            lost = (name for name, value in pairs if isinstance(value, (str, list, dict)) and value != found[name])
            name = next(lost, None)
            self._found.repeated = None if name is None else Repeated(name)
        return found


_DECODER = RowDecoder()


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
        ValueError: it is UTF-16 or UTF-32, whose lines end in other bytes.
    """
    head = file.read(4)
    file.seek(0)
    encoding = json.detect_encoding(head)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"it is {encoding.upper()}, and JSON is UTF-8 (iconv -f {encoding} -t utf-8 makes it so)")


def object_of(line: bytes) -> dict[str, Any]:
    """Returns the object of a line.

    Raises:
        ValueError: it is none.
    """
    try:
        values = _DECODER.decode(line.decode("utf-8-sig", "surrogatepass"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if isinstance(values, dict):
        return values
    if isinstance(values, Repeated):
        raise RepeatedError(values.problem)
    raise ValueError(f"it is {kind_of(values)}, no object" + "; name an array .json" * isinstance(values, list))


def problem_of(error: ValueError) -> str:
    """Says what is wrong with a line."""
    if isinstance(error, RepeatedError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"its byte {error.start + 1:,} is no UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at its character {error.pos + 1:,}"
    return str(error).partition(":")[0]
