"""Decodes tokens to text incrementally, and escapes text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_BEFORE = 4
_REPLACEMENT = "\ufffd"
_MOST_HELD = 8
"""Tokens without whole characters, more than a character has bytes, after which they are no text."""


class TextStream:
    """Incremental decoder; see stream_text.

    Decodes the last tokens with the next, since a token's text can depend on the one before it. The tokenizers
    library's DecodeStream raises on bytes that are no UTF-8, which a model may write.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._known, self._new = tokenizer, list(before[-_BEFORE:]), list[int]()
        self._known_text = self._decode(self._known)

    def push(self, token: int) -> str:
        """Adds a token, and returns the characters that it completes."""
        self._new.append(token)
        text = self._decode(self._known + self._new)
        whole = len(text) > len(self._known_text) and not text.endswith(_REPLACEMENT)
        if not whole and len(self._new) < _MOST_HELD:
            return ""
        found = text[len(self._known_text) :]
        self._known, self._new = self._new, []
        self._known_text = self._decode(self._known)
        return found

    def end(self) -> str:
        """Returns the characters of tokens that await others, where none follows; U+FFFD for one that is cut off."""
        found = self._decode(self._known + self._new)[len(self._known_text) :] if self._new else ""
        self._new = []
        return found

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def stream_text(tokenizer: Any, tokens: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """Yields the text of each token; a character that takes several tokens comes with the last of them.

    The last text holds what is left where tokens end within a character, so all together are the tokens' decoding.

    Args:
        tokenizer: A tokenizers.Tokenizer.
        tokens: Token ids.
        before: Preceding token ids, since some tokenizers omit a space at the start of a text.
    """
    stream = TextStream(tokenizer, before)
    waits = False
    for token in tokens:
        if waits:
            yield ""
        text = stream.push(token)
        # A token without text may be the last one, which has what is left.
        waits = not text
        if text:
            yield text
    if waits:
        yield stream.end()


def printable(text: str) -> str:
    """Escapes a model's text for a terminal: every control character except line ends and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
