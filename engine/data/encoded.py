"""Finds data that is written as text (base64, hexadecimal, tables of numbers), which teaches a model nothing."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from itertools import pairwise

from engine.data.documents import Edit
from engine.data.encoded_lines import SHORTEST_TABLE, encoded_lines, stretches

REVISION = 3
"Raised when other text would be cut out; part of every store's key."
PLACEHOLDER = "…"
"What stands in place of a run that is cut out."
SHARE = 0.9
"Share of a file's characters in such runs from which on the file is left out."
_LEFT = 400
"Characters of other text that are worth keeping, whatever the share."
_SHORTEST = 512
"Characters of a run of base64 or of hexadecimal digits, its line ends and quotation marks included."
_FEWEST = 64
"Items of a table."
_STRIPE = 32
"Letters and digits in a row, of which any run of that size has some."
_LINE = 60
"Letters of base64 in a row."
_BETWEEN = re.compile(r"[\s\"'`,+\\#*;|>]{0,40}")
_TAIL = re.compile(r"(?:[\s\"'`,+\\#*;|>]{1,40}[A-Za-z0-9+/_-]{4,}={0,2}(?=[\s\"'`,;)\]}<]|$))?")
# Each letter has one place in these, so that a run that is too short is given up at once.
_HEXADECIMAL = re.compile(r"(?:0[xX][0-9A-Fa-f]{1,16}[uUlL]{0,3}[,\s]{1,24}){64,}(?:0[xX][0-9A-Fa-f]{1,16})?")
_ESCAPED = re.compile(r"(?:\\[xX][0-9A-Fa-f]{2}(?:[\"']\s{0,24}[\"'])?){64,}")
_OCTAL = re.compile(r"(?:\\[0-3][0-7]{2}(?:[\"']\s{0,24}[\"'])?){64,}")
_DECIMAL = re.compile(r"(?:-?\d{1,5}[ \t]{0,4},[ \t]{0,4}(?:\r?\n[ \t]{0,24})?){128,}(?:-?\d{1,5})?")
_DUMPED = re.compile(r"(?:\b[0-9A-Fa-f]{2}[ \t]{1,2}(?:\r?\n(?:[0-9A-Fa-f]{6,16}:?[ \t]+)?)?){128,}")


def _classes(letters: str) -> bytes:
    return bytes(ord("a") if chr(code) in letters else ord(" ") for code in range(256))


# Without the signs that people draw lines with: of a run of base64 some words go without them.
_IN_WORDS = _classes(string.ascii_letters + string.digits + "+")
_IN_LINES = _classes(string.ascii_letters + string.digits + "+/_=-")
_IN_DECIMALS = _classes(string.digits + ",- \t\r\n")
_IN_DUMPS = _classes(string.hexdigits + ": \t\r\n")
_IN_TABLES = _classes(string.hexdigits + ":,- \t\r\n")
_STRETCH = 512
"Bytes of nothing but a table's letters: less is in no table that is cut out."


def find_encoded(text: str) -> list[Edit]:
    """Finds the runs of encoded data in a text, in order, each with the edit that cuts it out."""
    found: list[tuple[int, int]] = []
    # A look at the bytes tells most files apart, a hundred times as fast as the patterns.
    content = text.encode("ascii", "replace")
    if b"a" * _STRIPE in content.translate(_IN_WORDS):
        found += _words(text, content)
    if content.count(b"0x") + content.count(b"0X") >= _FEWEST:
        found += _tables(_HEXADECIMAL, text)
    if content.count(b"\\") >= _FEWEST:
        if content.count(b"\\x") + content.count(b"\\X") >= _FEWEST:
            found += _tables(_ESCAPED, text)
        if sum(content.count(b"\\%d" % digit) for digit in range(4)) >= _FEWEST:
            found += _tables(_OCTAL, text)
    # Every table's letters are a dump's or a decimal number's: most texts have no stretch of either.
    if b"a" * _STRETCH in content.translate(_IN_TABLES):
        if b"a" * _STRETCH in content.translate(_IN_DECIMALS):
            found += _tables(_DECIMAL, text)
        if b"a" * _STRETCH in content.translate(_IN_DUMPS):
            found += _tables(_DUMPED, text)
    found += encoded_lines(text, content)
    return [Edit(start, end, PLACEHOLDER) for start, end in _merged(found)]


def without_encoded(text: str, edits: list[Edit]) -> list[Edit] | None:
    """Adds the edits that cut out encoded data; returns None where a text is hardly anything else.

    Args:
        text: Of a file.
        edits: Other edits, in order, which go before.
    """
    runs = find_encoded(text)
    if not runs:
        return edits
    if is_encoded(text, runs):
        return None
    kept = [run for run in runs if not any(run.start < edit.end and edit.start < run.end for edit in edits)]
    return sorted([*edits, *kept], key=lambda edit: edit.start)


def is_encoded(text: str, edits: list[Edit]) -> bool:
    """Tells whether hardly anything but encoded data is in a text."""
    size = sum(edit.end - edit.start for edit in edits)
    return size > 0 and (size >= SHARE * len(text) or len(text) - size < _LEFT)


def _words(text: str, content: bytes) -> Iterator[tuple[int, int]]:
    """Yields the runs of base64 and hexadecimal digits; `content` is a byte for each character."""
    start = end = -1
    for first, last in stretches(content.translate(_IN_LINES), _LINE):
        if not _looks_encoded(text[first:last]):
            continue
        if start >= 0 and (between := _BETWEEN.match(text, end)) and between.end() == first:
            end = last
            continue
        if start >= 0:
            yield from _run(text, start, end)
        start, end = first, last
    if start >= 0:
        yield from _run(text, start, end)


def _run(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    if end - start >= _SHORTEST:
        tail = _TAIL.match(text, end)
        yield start, tail.end() if tail else end


def _looks_encoded(word: str) -> bool:
    """Tells whether letters are mixed as in base64, or all are hexadecimal digits, and no word is repeated."""
    sample = word[:160]
    letters = set(sample)
    if len(letters) < 8:
        return False
    if letters <= _HEX:
        return any(letter.isdigit() for letter in letters)
    if len(letters) < 20 or {0, 1, 2} - set(map(_kind, letters)):
        return False
    # Names in code change their kind of letter once a word; in base64 every other letter does.
    changes = sum(_kind(a) != _kind(b) for a, b in pairwise(sample))
    return changes >= 0.35 * len(sample)


_HEX = frozenset("0123456789abcdefABCDEF")


def _kind(letter: str) -> int:
    return 0 if letter.islower() else 1 if letter.isupper() else 2 if letter.isdigit() else 3


def _tables(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    for found in pattern.finditer(text):
        if found.end() - found.start() >= SHORTEST_TABLE:
            yield found.start(), len(found[0].rstrip()) + found.start()


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
