"""Prepares a text for the rules: its small letters, and its distinct words, which tell what is not in it."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterator

import numpy as np
from ahocorasick_rs import BytesAhoCorasick, Implementation

_LONG_WORDS = 16
_RANDOM_LOOKING = re.compile(r"\d\D*\d|(?:[A-Z][^A-Z]{0,200}){5}")


_BORDERS = b"()[]{}<>\"'`,;\\ \t\r\x0b\x0c"
"Beside line ends, what parts words: of a word that is quoted or an argument, few differ."
_PARTED = bytes.maketrans(_BORDERS, b"\n" * len(_BORDERS))
_PARTED_LOWER = bytes.maketrans(
    _BORDERS + string.ascii_uppercase.encode(), b"\n" * len(_BORDERS) + string.ascii_lowercase.encode()
)
_END, _DIGIT, _CAPITAL, _OTHER = range(4)


def _kind(code: int) -> int:
    if code == ord("\n"):
        return _END
    # What is beyond ASCII may be a digit of another script.
    if chr(code) in string.digits or code >= 0x80:
        return _DIGIT
    return _CAPITAL if chr(code) in string.ascii_uppercase else _OTHER


_KINDS = bytes(map(_kind, range(256)))
"Of each byte: what tells a random-looking word."
_SHORT_TEXT = 2048
"Bytes of a text below which an array of them does not pay."
_DIGITS, _CAPITALS = 2, 5
"Bytes of that kind that a random-looking word has at least, one or the other."


def is_random_looking(word: str) -> bool:
    """Tells whether a word has digits, or capitals within, as keys have."""
    return _RANDOM_LOOKING.search(word) is not None


def line_start(text: str, position: int, furthest: int) -> int:
    """Returns the start of the line, or the place `furthest` characters before."""
    first = max(0, position - furthest)
    found = text.rfind("\n", first, position)
    return found + 1 if found >= 0 else first


def places(text: str, part: str) -> Iterator[int]:
    """Yields where a part stands in a text."""
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + len(part))


class SearchedText:
    """A text that is searched for secrets.

    Attributes:
        text: As it is.
        lower: In small letters, character by character.
        language: Of the text.
        name_places: Where telling names stand, by their stem, once a rule has looked for them.
        candidates: The words long enough and random enough to hold a key: to search those alone is ten times as quick.
    """

    def __init__(self, text: str, language: str) -> None:
        self.text, self.language = text, language
        self.name_places: dict[str, list[int]] = {}
        # The one capital letter whose small form is longer, and would change every position after it.
        self.lower = text.replace("\u0130", "I").lower()
        content = b"\n%b\n" % text.encode("utf-8", "replace")
        self.candidates = _candidates(content)
        # Lines of one word each, and empty ones.
        if not text.isascii():
            content = b"\n%b\n" % self.lower.encode("utf-8", "replace")
        self._words = content.translate(_PARTED_LOWER)
        self._asked, automaton = _automaton(len(_PARTS))
        parts = self._asked
        self._present = {parts[found] for found, _, _ in automaton.find_matches_as_indexes(self._words, True)}

    def has(self, part: str) -> bool:
        """Tells whether a part of a word occurs, in small letters; a line end stands for the word's border."""
        if part in self._present:
            return True
        if _PARTS.setdefault(part, len(_PARTS)) < len(self._asked):
            return False
        return part.encode() in self._words

    def found(self, parts: frozenset[str]) -> set[str]:
        """Returns those of the parts that occur."""
        if _last_place(parts) < len(self._asked):
            return self._present & parts
        return {part for part in parts if self.has(part)}


def candidates(text: str) -> list[str]:
    """Returns the words of a text that are long enough and random enough to hold a key, each once."""
    return _candidates(b"\n%b\n" % text.encode("utf-8", "replace"))


def _candidates(content: bytes) -> list[str]:
    """Returns the candidates of a text that begins and ends with a line end."""
    content = content.translate(_PARTED)
    if len(content) < _SHORT_TEXT:
        words = b"\n".join({word for word in content.split(b"\n") if len(word) >= _LONG_WORDS}).decode().split("\n")
    else:
        words = _long_words(content)
    return [word for word in words if len(word) >= _LONG_WORDS and is_random_looking(word)]


def _long_words(content: bytes) -> list[str]:
    """Returns the long words of a parted text that may be random-looking, each once."""
    # Most words are short, and most long ones are names: neither is worth an object of its own.
    kinds = np.frombuffer(content.translate(_KINDS), dtype=np.uint8)
    ends = np.flatnonzero(kinds == _END)
    long = np.flatnonzero(np.diff(ends) > _LONG_WORDS)
    if not len(long):
        return []
    starts, stops = ends[long], ends[long + 1]
    counts = (
        np.searchsorted(places, stops) - np.searchsorted(places, starts)
        for places in (np.flatnonzero(kinds == kind) for kind in (_DIGIT, _CAPITAL))
    )
    some = np.logical_or(*(count >= least for count, least in zip(counts, (_DIGITS, _CAPITALS), strict=True)))
    pairs = zip((starts[some] + 1).tolist(), stops[some].tolist(), strict=True)
    return b"\n".join({content[start:stop] for start, stop in pairs}).decode().split("\n")


_PARTS: dict[str, int] = {}
"Every part that a rule has asked for, and its place among them: one pass over a text finds them all."


@functools.cache
def _last_place(parts: frozenset[str]) -> int:
    return max(_PARTS.setdefault(part, len(_PARTS)) for part in sorted(parts))


@functools.lru_cache(maxsize=1)
def _automaton(count: int) -> tuple[tuple[str, ...], BytesAhoCorasick]:
    """Returns the first parts that were asked for, and what finds them; made again when a rule asks for another."""
    parts = tuple(_PARTS)[:count]
    return parts, BytesAhoCorasick([part.encode() for part in parts], implementation=Implementation.DFA)
