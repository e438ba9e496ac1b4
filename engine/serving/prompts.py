"""Prompts of requests as token ids, and the models by their names."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engine.data.chats import Chats, find_template
from engine.data.messages import NoConversationError, calls_of, content_of, tools_of, unfolded
from engine.errors import EliteError
from engine.generation.request import Side, TextRequest
from engine.generation.sampling import Sampling
from engine.serving.requests import ApiRequest, ChatRequest, CompletionRequest, RequestError
from engine.tokenization.chat_template import RenderError
from engine.tokenization.marked_conversation import SplitError

if TYPE_CHECKING:
    from engine.generation.writer import Writer

COMPLETION_TOKENS = 16
"""Of a completion whose request names no number, as in OpenAI's API."""


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered."""

    model: str
    side: Side
    prompt: list[int]
    sampling: Sampling
    stops: list[str]


class Prompts:
    """Encodes the prompts of a writer's models. May be called from several threads.

    Args:
        writer: The models.
        capacity: Maximum tokens of a prompt and its text.

    Attributes:
        names: Side of each model by its name; the tuned model comes first.

    Raises:
        EliteError: CHAT_TEMPLATE_UNUSABLE.
    """

    def __init__(self, writer: Writer, capacity: int) -> None:
        self._writer, self._capacity = writer, capacity
        base = writer.models.spec.name
        self.names: dict[str, Side] = {base: "base"}
        if "tuned" in writer.sides:
            self.names = {writer.name: "tuned", (f"{base}-base" if base == writer.name else base): "base"}
        self._chats = self._find_chats()
        # A template's environment holds the state of one rendering.
        self._one_at_a_time = threading.Lock()

    def _find_chats(self) -> Chats | None:
        writer = self._writer
        named = writer.models.chat_template(writer.chat_template)
        template = find_template(writer.tokenizer, writer.encoder, named)
        return None if template is None else Chats(writer.encoder, template)

    def prepare(self, request: CompletionRequest | ChatRequest) -> Prepared:
        """Encodes a request's prompt.

        Raises:
            RequestError: its model is unknown, or its prompt unusable or too long.
        """
        name, side = self._model(request.model)
        with self._one_at_a_time:
            if isinstance(request, ChatRequest):
                prompt, wanted = self._chat(request), request.max_completion_tokens or request.max_tokens
                param = "messages"
            else:
                prompt, wanted = self._completion(request), request.max_tokens or COMPLETION_TOKENS
                param = "prompt"
        room = self._capacity - len(prompt)
        if room < (wanted or 1):
            asked = f"{len(prompt):,} tokens in the prompt and {wanted or 1:,} to write"
            message = f"this server takes {self._capacity:,} tokens a request; these are {asked}"
            raise RequestError(message, code="context_length_exceeded", param=param)
        return Prepared(name, side, prompt, _sampling(request, wanted or room), request.stops)

    def _model(self, name: str) -> tuple[str, Side]:
        if not name:
            return next(iter(self.names.items()))
        if name in self.names:
            return name, self.names[name]
        for full, side in self.names.items():
            if name == side:
                return full, side
        known = ", ".join(self.names)
        message = f"there is no model {name[:200]!r}; there is {known}"
        raise RequestError(message, status=404, code="model_not_found", param="model")

    def _completion(self, request: CompletionRequest) -> list[int]:
        given: str | Sequence[str | int | list[int]] = request.prompt
        if not isinstance(given, str) and len(given) == 1 and isinstance(given[0], str | list):
            given = given[0]
        if isinstance(given, str):
            before, after = (given, request.suffix or "") if request.suffix else self._spelled_fill(given)
            text = TextRequest(prompt=before, suffix=after, path=request.path or "")
            try:
                return self._writer.prompt_ids(text)
            except EliteError as error:
                raise RequestError(error.message, param="suffix") from error
        ids = [token for token in given if isinstance(token, int)]
        if not ids or len(ids) < len(given):
            raise RequestError("prompt is one text, or the token ids of one", param="prompt")
        vocabulary = self._writer.models.spec.vocab_size
        if not all(0 <= token < vocabulary for token in ids):
            raise RequestError(f"token ids are 0–{vocabulary - 1}", param="prompt")
        if request.suffix or request.path:
            raise RequestError("suffix and path need a prompt as text", param="prompt")
        return ids

    def _spelled_fill(self, prompt: str) -> tuple[str, str]:
        """Splits a prompt that spells the tokens of fill-in-the-middle around its parts, as editors write them.

        Anywhere else the names of control tokens are text.
        """
        encoder = self._writer.encoder
        if (fim := encoder.fim) is None:
            return prompt, ""
        prefix, suffix, middle = (encoder.decode([token]) for token in (fim.prefix, fim.suffix, fim.middle))
        if not (prompt.startswith(prefix) and prompt.endswith(middle) and prompt.count(suffix) == 1):
            return prompt, ""
        before, _, after = prompt.removeprefix(prefix).removesuffix(middle).partition(suffix)
        # Without a text behind the place, the prompt is one to go on with.
        return before, after

    def _chat(self, request: ChatRequest) -> list[int]:
        if self._chats is None:
            raise RequestError(
                "the tokenizer of this model has no chat template: use /v1/completions", code="no_chat_template"
            )
        try:
            messages = [
                _message(message, number)
                for number, given in enumerate(request.messages, 1)
                for message in unfolded(given)
            ]
            tools = None if request.tool_choice == "none" else tools_of(request.tools)
            ids = self._chats.prompt(messages, tools, datetime.now())  # noqa: DTZ005 - as templates write it
        except (NoConversationError, RenderError, SplitError, EliteError) as error:
            raise RequestError(f"the messages cannot be written down: {error}", param="messages") from error
        return ids or [self._writer.encoder.end]


def _message(given: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A message as `apply_chat_template` takes it: content as text, and arguments of calls as objects."""
    name = f"message {number}"
    if not isinstance(given.get("role"), str):
        raise NoConversationError("bad message", f"{name} has no role")
    content, reasoning, calls = content_of(given.get("content"), name)
    made: dict[str, Any] = {"role": given["role"], "content": content}
    reasoning = given.get("reasoning_content") or reasoning
    if isinstance(reasoning, str):
        made["reasoning_content"] = reasoning
    if calls := given.get("tool_calls") or calls:
        made["tool_calls"] = calls_of(calls, name)
    return made | {key: given[key] for key in ("name", "tool_call_id") if isinstance(given.get(key), str)}


def _sampling(request: ApiRequest, max_tokens: int) -> Sampling:
    seed = secrets.randbits(63) if request.seed is None else request.seed % 2**63
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    return Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
