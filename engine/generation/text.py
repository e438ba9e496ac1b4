"""From tokens to text as they come, and from text to what a terminal may be given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_BEFORE = 4


class TextStream:
    """The text of tokens as they come; see stream_text."""

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=False)
        for token in before[-_BEFORE:]:
            self._stream.step(tokenizer, token)

    def push(self, token: int) -> str:
        """What has become whole with this token."""
        return self._stream.step(self._tokenizer, token) or ""


def stream_text(tokenizer: Any, tokens: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """The text of tokens, a piece for each; a character that takes several tokens comes with the last of them.

    Args:
        tokenizer: A tokenizers.Tokenizer.
        tokens: Ids.
        before: Those that stand before them: some tokenizers leave a space out at the start of a text.
    """
    stream = TextStream(tokenizer, before)
    for token in tokens:
        yield stream.push(token)


def printable(text: str) -> str:
    """Text of a model for a terminal: line ends and tabs stay, every other control character is spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
