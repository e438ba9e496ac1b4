"""Finds passwords that SQL statements set."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.literals import literal
from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secret_rules.values import Evidence, is_secretive

Found = tuple[str, int, int]
_IDENTIFIED = re.compile(
    r"identified\s{1,20}(?:with\s{1,20}[\w'\"]{1,60}\s{1,20})?(?:by|as)\s{1,20}(?:password\s{1,20})?"
    r"(?:(?=['\"])|(?P<bare>[\w!#$%^&*+./@~=:-]{6,60})(?=[;\s\"'`)]|$))"
)
_INSERT = re.compile(
    r"insert\s{1,20}(?:ignore\s{1,20})?into\s{1,20}[\w.`\"\[\]]{1,120}\s{0,20}\((?P<columns>[^()]{1,2000})\)\s{0,20}values\s{0,20}"
)
_CELL = re.compile(
    r"\s{0,20}(?:n?'(?P<text>(?:[^'\\]|\\.|''){0,2000})'|\"(?P<other>[^\"\n]{0,2000})\"|(?P<bare>[^,()']{1,200}))\s{0,20}(?P<end>[,)])"
)
_SECRET_COLUMN = re.compile(
    r"passw|pwd|secret|token|api_?key|access_?key|credential|private_?key|salt\b", re.IGNORECASE
)
_OTHER_COLUMN = re.compile(r"_(?:id|at|name|type|hash|url|date|expir\w*)\W*$|[cx]srf", re.IGNORECASE)
_UUID = re.compile(r"[\da-fA-F]{8}(?:-[\da-fA-F]{4}){3}-[\da-fA-F]{12}$")


def sql(source: SearchedText) -> Iterator[Found]:
    """Yields passwords that SQL statements set."""
    text, lower = source.text, source.lower
    if source.has("identified"):
        for match in _IDENTIFIED.finditer(lower):
            span = match.span("bare") if match["bare"] else literal(text, match.end())
            if span and is_secretive(text[slice(*span)], Evidence.PASSWORD):
                yield "password in SQL", *span
    if source.has("insert") and source.has("values"):
        for match in _INSERT.finditer(lower):
            columns = match["columns"].split(",")
            yield from _inserted(text, lower, match.end(), columns)


def _inserted(text: str, lower: str, position: int, columns: list[str]) -> Iterator[Found]:
    """Yields the values of telling columns, and those of rows whose other value is a telling name."""
    wanted = {
        n for n, column in enumerate(columns) if _SECRET_COLUMN.search(column) and not _OTHER_COLUMN.search(column)
    }
    for _ in range(1000):
        opened = re.compile(r"[\s,]{0,40}\(").match(lower, position)
        if opened is None:
            return
        position, number, named = opened.end(), 0, False
        while (cell := _CELL.match(lower, position)) is not None:
            group = "text" if cell["text"] is not None else "other"
            if cell[group] is not None:
                start, end = cell.span(group)
                value = text[start:end]
                told = Evidence.PASSWORD if number in wanted else Evidence.NAMED
                known = number in wanted or (named and not _UUID.match(value))
                if known and is_secretive(value, told):
                    yield "password in SQL", start, end
                named = bool(_SECRET_COLUMN.search(value)) and len(value) < 60 and not _OTHER_COLUMN.search(value)
            position, number = cell.end(), number + 1
            if cell["end"] == ")":
                break
        else:
            return
