"""Answers of OpenAI's API: whole ones, and the chunks of streamed ones."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from engine.serving.requests import RequestError

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Text:
    """Text that an answer goes on with."""

    text: str


@dataclass(frozen=True)
class End:
    """The end of an answer."""

    reason: str
    "stop or length."
    prompt_tokens: int
    completion_tokens: int

    def usage(self) -> dict[str, int]:
        """Returns the counts as OpenAI's API writes them."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


@dataclass(frozen=True)
class Form:
    """The form of one answer."""

    model: str
    chat: bool
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, text: str, end: End) -> dict[str, Any]:
        """Returns an answer that is not streamed."""
        if self.chat:
            inner: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            inner = {"text": text}
        return self._answer("chat.completion", inner, end.reason) | {"usage": end.usage()}

    async def chunks(self, parts: AsyncIterator[Text | End], *, counted: bool) -> AsyncIterator[bytes]:
        """Yields a streamed answer as server-sent events.

        Args:
            parts: The answer; a RequestError that it raises becomes an event.
            counted: Whether a last chunk counts the tokens.
        """
        usage: dict[str, Any] = {"usage": None} if counted else {}
        if self.chat:
            yield _event(self._chunk({"delta": {"role": "assistant", "content": ""}}, None) | usage)
        try:
            async for part in parts:
                if isinstance(part, Text):
                    inner = {"delta": {"content": part.text}} if self.chat else {"text": part.text}
                    yield _event(self._chunk(inner, None) | usage)
                    continue
                yield _event(self._chunk({"delta": {}} if self.chat else {"text": ""}, part.reason) | usage)
                if counted:
                    yield _event(self._chunk({}, None) | {"choices": [], "usage": part.usage()})
        except RequestError as error:
            yield _event(error.body())
            return
        yield DONE

    def _chunk(self, inner: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return self._answer("chat.completion.chunk", inner, reason)

    def _answer(self, name: str, inner: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **inner, "logprobs": None, "finish_reason": reason}
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.number}",
            "object": name if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
