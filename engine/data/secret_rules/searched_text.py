"""Prepares a text for the rules: its small letters, and its distinct words, which tell what is not in it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from ahocorasick_rs import BytesAhoCorasick, Implementation

_LONG_WORDS = 16
_RANDOM_LOOKING = re.compile(r"\d\D*\d|(?:[A-Z][^A-Z]{0,200}){5}")


_BORDERS = bytes.maketrans(b"()[]{}<>\"'`,;\\", b" " * 14)
"Beside white space, what parts words: of a word that is quoted or an argument, few differ."


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
        candidates: The words long enough and random enough to hold a key: to search those alone is ten times as quick.
    """

    def __init__(self, text: str, language: str) -> None:
        self.text, self.language = text, language
        # The one capital letter whose small form is longer, and would change every position after it.
        self.lower = text.replace("\u0130", "I").lower()
        # Bytes are parted several times as fast as characters.
        words = set(text.encode("utf-8", "replace").translate(_BORDERS).split())
        long = b"\n".join([word for word in words if len(word) >= _LONG_WORDS]).decode().split("\n")
        self.candidates = [word for word in long if len(word) >= _LONG_WORDS and is_random_looking(word)]
        joined = b"\n%b\n" % b"\n".join(words)
        self._words = joined.lower() if text.isascii() else joined.decode().replace("\u0130", "I").lower().encode()
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
