"""Decodes tokens to text incrementally, and escapes text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_BEFORE = 4


class TextStream:
    """Incremental decoder; see stream_text."""

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=False)
        for token in before[-_BEFORE:]:
            self._stream.step(tokenizer, token)

    def push(self, token: int) -> str:
        """Adds a token, and returns the characters that it completes."""
        return self._stream.step(self._tokenizer, token) or ""


def stream_text(tokenizer: Any, tokens: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """Yields the text of each token; a character that takes several tokens comes with the last of them.

    Args:
        tokenizer: A tokenizers.Tokenizer.
        tokens: Token ids.
        before: Preceding token ids, since some tokenizers omit a space at the start of a text.
    """
    stream = TextStream(tokenizer, before)
    for token in tokens:
        yield stream.push(token)


def printable(text: str) -> str:
    """Escapes a model's text for a terminal: every control character except line ends and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
