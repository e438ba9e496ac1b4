"""Prepares a text for the rules: its small letters, and its distinct words, which tell what is not in it."""

from __future__ import annotations

import re

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
        joined = b"\n".join(words).decode()
        self.candidates = [word for word in joined.split("\n") if len(word) >= _LONG_WORDS and is_random_looking(word)]
        self._words = "\n" + joined.replace("\u0130", "I").lower() + "\n"
        self._known: dict[str, bool] = {}

    def has(self, part: str) -> bool:
        """Tells whether a part of a word occurs, in small letters; a line end stands for the word's border."""
        if part not in self._known:
            self._known[part] = part in self._words
        return self._known[part]
