"""Finds secrets in the columns of tables of documents whose heads name them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secret_rules.values import Evidence, is_secretive

Found = tuple[str, int, int]
_LANGUAGES = frozenset({"Markdown", "Text", "AsciiDoc", "Org", "reStructuredText"})
_HEAD = re.compile(r"^(?P<head>[^\n]{0,400}\|[^\n]{0,400})\n(?=[ \t]{0,8}[|+:-][ \t|+:-]{2,400}$)", re.MULTILINE)
_PASSWORD = re.compile(r"passw|pwd|passphrase|\bpw\b|kennwort|비밀번호|密码|パスワード|парол")
_NAMED = re.compile(r"secret|token|(?:api|access|private)[ _-]?key|credential")
_OTHER = re.compile(r"\b(?:id|name|type|hash|url|date|expir\w*|length|policy|count|limit)\b")
_DRESSED = " \t*`_\"'"
"What is put around a cell's text."
_MOST_ROWS = 1000


def tables(source: SearchedText) -> Iterator[Found]:
    """Yields the cells that look like secrets below a column's head that tells of them."""
    if source.language not in _LANGUAGES or "|" not in source.text:
        return
    text, lower = source.text, source.lower
    for match in _HEAD.finditer(lower):
        wanted = {
            number: Evidence.PASSWORD if _PASSWORD.search(head) else Evidence.NAMED
            for number, head in enumerate(match["head"].split("|"))
            if (_PASSWORD.search(head) or _NAMED.search(head)) and not _OTHER.search(head)
        }
        if wanted:
            yield from _cells(text, text.find("\n", match.end()) + 1, wanted)


def _cells(text: str, position: int, wanted: dict[int, Evidence]) -> Iterator[Found]:
    for _ in range(_MOST_ROWS if position else 0):
        stop = text.find("\n", position)
        line = text[position : stop if stop >= 0 else len(text)]
        if "|" not in line:
            return
        place = position
        for number, cell in enumerate(line.split("|")):
            value = cell.strip(_DRESSED)
            if value and number in wanted and is_secretive(value, wanted[number]):
                start = place + cell.index(value)
                yield "secret in a table", start, start + len(value)
            place += len(cell) + 1
        if stop < 0:
            return
        position = stop + 1
