"""From tokens to text as they come, and from text to what a terminal may be given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_BEFORE = 4


def stream_text(tokenizer: Any, tokens: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """The text of tokens, a piece for each; a character that takes several tokens comes with the last of them.

    Args:
        tokenizer: A tokenizers.Tokenizer.
        tokens: Ids.
        before: Those that stand before them: some tokenizers leave a space out at the start of a text.
    """
    stream = DecodeStream(skip_special_tokens=False)
    for token in before[-_BEFORE:]:
        stream.step(tokenizer, token)
    for token in tokens:
        text = stream.step(tokenizer, token)
        yield text or ""


def printable(text: str) -> str:
    """Text of a model for a terminal: line ends and tabs stay, every other control character is spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
