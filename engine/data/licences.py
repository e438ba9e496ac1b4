"""Finds licence headers, so that the same comment at the top of a thousand files is trained on once.

Only comments are considered, and only those that speak of rights; the first file that has one keeps it.
"""

from __future__ import annotations

import hashlib
import re

REVISION = 2
"Raised when other text would be taken out; part of every store's key."
_RIGHTS = re.compile(
    r"copyright|\(c\) \d{4}|licen[cs]e|spdx-|all rights reserved|permission is hereby granted|redistribution and use"
    r"|public domain",
    re.IGNORECASE,
)
_FIRST_LINES = re.compile(r"(?:#![^\n]*\n)?(?:[ \t]*#[^\n]*coding[:=][^\n]*\n)?(?:<\?(?:php|xml)[^\n]*\n)?\s*")
_COMMENT = re.compile(
    r"/\*.{0,20000}?\*/[ \t]*\n?|<!--.{0,20000}?-->[ \t]*\n?|(?:[ \t]*(?:#|//|--|;|%|\"\s|'\s|REM\b)[^\n]*\n){1,400}"
    r"|(?:[ \t]*#[ \t]*\n)+",
    re.DOTALL,
)
_BLANK = re.compile(r"(?:[ \t]*\n)*")
_OWN = re.compile(
    r"[\w+-]+(?:\.[\w+-]+)*\.[a-z][a-z0-9+]{0,11}(?=\W|$)|\b(?:created|written|modified|edited)(?: \w+)? by [^\n]*"
    r"|@(?:file|author|date|since|version|brief|package)\b[^\n]*",
    re.IGNORECASE,
)
"What a header says of its own file: its name, who made it and when."
_NOT_WORDS = re.compile(r"[\W_]+|\b\d+\b")
_SHORTEST = 40
"Characters; to take out less is not worth it."
_SEARCHED = 25_000
"Characters at the start of a file that a header may take."


def find_header(text: str) -> tuple[int, int] | None:
    """Returns start and end of the licence comment at a text's top, with the blank lines after it; None without one."""
    top = text[:_SEARCHED]
    begin = _FIRST_LINES.match(top)
    start = begin.end() if begin else 0
    comment = _COMMENT.match(top, start)
    if comment is None or comment.end() - start < _SHORTEST or not _RIGHTS.search(comment[0]):
        return None
    end = comment.end()
    blank = _BLANK.match(top, end)
    return start, blank.end() if blank else end


def fingerprint(header: str) -> bytes:
    """Hashes a header in 16 bytes, without its numbers, comment signs, line breaks and its file's name."""
    words = _NOT_WORDS.sub(" ", _OWN.sub(" ", header.lower())).split()
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()
