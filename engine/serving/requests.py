"""Requests of OpenAI's API: what is read of them, and what is refused.

A field that only names the caller is ignored. One that would change the answer and is not implemented is refused,
because an answer that leaves it out would be another one than was asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from engine.data.line_ends import with_line_feeds

DEEPEST = 64
"""Levels of JSON in a request."""
MOST_STOPS = 64

Stop = Annotated[str, Meta(min_length=1, max_length=1000)]
Stops = Annotated[list[Stop], Meta(max_length=MOST_STOPS)]


class RequestError(Exception):
    """A request that is not answered, as OpenAI's API words it."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """Returns the error as OpenAI's API writes it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class StreamOptions(Struct, kw_only=True):
    """Settings of a streamed answer."""

    include_usage: bool = False
    "Whether a last chunk counts the tokens."


class ApiRequest(Struct, kw_only=True):
    """What completions and chats have in common."""

    model: str = ""
    "Name from /v1/models; the first of them if empty."
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings, those with CRLF also with LF, as answers have it."""
        given = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        return list(dict.fromkeys([*given, *map(with_line_feeds, given)]))

    def refused(self) -> str | None:
        """Names a field that is not implemented and is set; None where there is none."""
        if self.n not in (None, 1):
            return "n"
        for field in ("logprobs", "presence_penalty", "frequency_penalty", "logit_bias"):
            # logprobs=0 asks for the token's own.
            if (value := getattr(self, field)) or (field == "logprobs" and value == 0 and value is not False):
                return field
        return None


class CompletionRequest(ApiRequest, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    suffix: str | None = None
    "Text after the place to fill."
    path: str | None = None
    "Path of the file that the prompt begins, which is then encoded as in training. Not one of OpenAI's."
    echo: bool | None = None
    best_of: int | None = None

    def refused(self) -> str | None:
        """See ApiRequest."""
        if self.echo:
            return "echo"
        return "best_of" if self.best_of not in (None, 1) else super().refused()


class ChatRequest(ApiRequest, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None

    def refused(self) -> str | None:
        """See ApiRequest."""
        if self.tool_choice not in (None, "auto", "none"):
            return "tool_choice"
        if self.response_format and self.response_format.get("type") != "text":
            return "response_format"
        return super().refused()


R = TypeVar("R", bound=ApiRequest)


def read_request(body: bytes, kind: type[R]) -> R:
    """Reads a request.

    Raises:
        RequestError: it is no JSON, not what the API takes, nested too deep, or asks for something unimplemented.
    """
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=_field_of(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deep") from error
    if isinstance(request, ChatRequest) and _is_deep([request.messages, request.tools]):
        raise RequestError(f"the body is nested deeper than {DEEPEST} levels")
    if (field := request.refused()) is not None:
        raise RequestError(f"{field} is not supported", param=field, code="unsupported_parameter")
    return request


def _field_of(error: msgspec.ValidationError) -> str | None:
    _, _, place = str(error).rpartition("`$.")
    return place.rstrip("`") or None if "`$." in str(error) else None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
    return bool(level)
