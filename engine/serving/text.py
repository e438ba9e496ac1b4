"""Text of an answer as it grows, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.generation.text import TextStream


class StoppingText:
    """Decodes tokens to text, which ends before the stop string that is complete first.

    A stop string may begin in one token and end in another. So the end of the text is held back while a stop string may
    begin there.

    Attributes:
        stopped: Whether a stop string was found; the text is complete then.

    Args:
        tokenizer: A tokenizers.Tokenizer.
        before: Tokens of the prompt.
        stops: Strings that end the text, each of a character at least; they are not part of it.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int], stops: Sequence[str]) -> None:
        self._stream, self._stops = TextStream(tokenizer, before), stops
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Adds a token, and returns the text that is certain now."""
        return "" if self.stopped else self._until_stop(self._stream.push(token))

    def end(self) -> str:
        """Returns what was held back, where no token follows."""
        if self.stopped:
            return ""
        text = self._until_stop(self._stream.end()) + self._held
        self._held = ""
        return text

    def _until_stop(self, more: str) -> str:
        text = self._held + more
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]  # of several, the one that is complete first
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that a stop string begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
