"""Finds encoded data that fills lines: tables of numbers of any kind, strings of bytes, and files of 7-bit lines.

Base64, hexadecimal digits and the densest tables are found by engine.data.encoded.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

SHORTEST_TABLE = 2048
"Characters of a table: shorter ones are constants that people look up."
_FEWEST = 128
"Numbers of a table."


def _classes(letters: str) -> bytes:
    return bytes(ord("a") if chr(code) in letters else ord(" ") for code in range(256))


# A table is a stretch of nothing but these. Brackets stand between rows, letters in exponents and behind literals.
_IN_NUMBERS = _classes(string.digits + "+-.,;eEfF()[]{} \t\r\n")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][-+]?\d{1,3})?[fF]?(?![\w.])")
_BETWEEN_NUMBERS = frozenset("-,;()[]{} \t\r\n")
# Literals of Rust (0x1fu8) and of assemblers (.byte 0x1f, db 01fh), a directive before each line.
_DIRECTIVE = r"(?:\.?(?:byte|2byte|4byte|word|hword|short|long|quad|int|db|dw|dd|dq|dc\.[bwl])[ \t]{1,8})?"
_LITERALS = (
    (
        b"0x",
        re.compile(rf"(?:0[xX][0-9A-Fa-f]{{1,16}}(?:[ui](?:8|16|32|64|128|size))?[,\s]{{1,24}}{_DIRECTIVE}){{64,}}"),
    ),
    (b"$", re.compile(rf"(?:\$[0-9A-Fa-f]{{2,8}}[,\s]{{1,24}}{_DIRECTIVE}){{64,}}")),
    (b"h,", re.compile(rf"(?:\b[0-9][0-9A-Fa-f]{{1,8}}[hH][,\s]{{1,24}}{_DIRECTIVE}){{64,}}")),
)
_BYTE = r"\\[xX][0-9A-Fa-f]{2}"
# What stands between two of a string's bytes; of a list's strings each is one of its own, of a table's too.
_ENTRY = r"[\"'][ \t\])}]{0,4}(?:=>|[:,;])"
_BYTES = re.compile(rf"{_BYTE}(?:(?:(?!{_ENTRY})[^\\\n]|\\[^xX\n]|\n[ \t]{{0,24}}(?![ \t])){{0,12}}{_BYTE}){{63,}}")
_SHORTEST_BYTES = 512
"Characters of such a string: shorter ones are a test's keys and vectors, which are read with it."
_CODES = re.compile(r"\\[xX]([0-9A-Fa-f]{2})")
_FEWEST_CODES = 48
"Bytes that differ, from which on escapes are no sequences for a terminal and no letters of one alphabet."
_FILES = tuple(
    (begin, re.compile(rf"(?m)(?:^{line}\r?(?:\n|\Z)){{8,}}"), re.compile(rf"\n{line}\r?(?=\n|\Z)"))
    for begin, line in (
        (b"\nM", "M[ -`]{60}"),  # uuencode
        (b"\n:", ":[0-9A-Fa-f]{10,74}"),  # Intel's
        (b"\nS", "S[0-9][0-9A-Fa-f]{8,74}"),  # Motorola's
    )
)
"How lines begin, a run of such lines, and one of them, which is found several times as fast."
_PRINTED = _classes("".join(map(chr, range(33, 127))))
_SHORTEST_LINE = 40
_FEWEST_LINES = 8
_MOST_SHARED = 6
"Characters with which all such lines may begin."
_APART = 40
"Characters between two lines: line ends, indentation, quotation marks."


def encoded_lines(text: str, content: bytes) -> Iterator[tuple[int, int]]:
    """Yields the first and last place of each run; they may overlap.

    Args:
        text: Of a file.
        content: A byte for each character of it.
    """
    yield from _numbers(text, content)
    for sign, pattern in _LITERALS:
        if content.count(sign) >= 64:
            yield from (f.span() for f in pattern.finditer(text) if f.end() - f.start() >= SHORTEST_TABLE)
    if content.count(b"\\x") + content.count(b"\\X") >= 64:
        for found in _BYTES.finditer(text):
            if found.end() - found.start() >= _SHORTEST_BYTES and len(set(_CODES.findall(found[0]))) >= _FEWEST_CODES:
                yield found.span()
    for begin, pattern, line in _FILES:
        if content.count(begin) >= _FEWEST_LINES - 1 and len(line.findall(text)) >= _FEWEST_LINES - 1:
            yield from (found.span() for found in pattern.finditer(text))
    yield from _printed(content)


def stretches(classes: bytes, shortest: int) -> Iterator[tuple[int, int]]:
    """Yields the longest stretches of the letter a of at least that size; spaces stand between."""
    least, end = b"a" * shortest, 0
    while (start := classes.find(least, end)) >= 0:
        end = classes.find(b" ", start)
        end = len(classes) if end < 0 else end
        yield start, end


def _numbers(text: str, content: bytes) -> Iterator[tuple[int, int]]:
    for start, end in stretches(content.translate(_IN_NUMBERS), SHORTEST_TABLE):
        numbers = [found.span() for found in _NUMBER.finditer(text, start, end)]
        if len(numbers) < _FEWEST:
            continue
        rest = _NUMBER.sub("", text[numbers[0][0] : numbers[-1][1]])
        if numbers[-1][1] - numbers[0][0] >= SHORTEST_TABLE and _BETWEEN_NUMBERS.issuperset(rest):
            yield numbers[0][0], numbers[-1][1]


def _printed(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields lines of one length without a space whose signs are mixed as in base85."""
    lines: list[tuple[int, int]] = []
    for start, end in stretches(content.translate(_PRINTED), _SHORTEST_LINE):
        same = lines and end - start == lines[0][1] - lines[0][0] and start - lines[-1][1] <= _APART
        if not same:
            yield from _dense(content, lines)
            lines = []
        lines.append((start, end))
    yield from _dense(content, lines)


def _dense(content: bytes, lines: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    if len(lines) < _FEWEST_LINES:
        return
    begins = [content[start : start + _MOST_SHARED + 1] for start, end in lines[:32]]
    if len(set(begins)) == 1:
        return  # addresses, whose last parts alone are mixed
    sample = b"".join(content[start:end] for start, end in lines[:32])
    kinds = [0, 0, 0, 0]
    for letter in sample.decode("ascii", "replace"):
        kinds[0 if letter.islower() else 1 if letter.isupper() else 2 if letter.isdigit() else 3] += 1
    # Each letter of base85 is as frequent as any other; of code, and of what people draw, few are.
    if len(set(sample)) >= 60 and min(kinds[1:]) >= 0.05 * len(sample) and kinds[3] >= 0.15 * len(sample):
        yield lines[0][0], lines[-1][1]
