"""Prompts of chat requests against transformers' own `apply_chat_template`, by the templates of known models."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from data.test_chat_templates import Reference
from support.chat_templates import FAMILIES

from engine.serving.prompts import Prompts
from engine.serving.requests import ChatRequest
from engine.tokenization.encoder import Encoder

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weath",
        "description": "Weather of a city, such as Zürich.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "City."}}},
    },
}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Zürich?"}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weath", "arguments": {"city": "Zürich"}}}
CALLED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weath", "content": '{"celsius": 3}'},
]
ANSWERED = [{"role": "assistant", "content": "3 degrees."}, {"role": "user", "content": "And tomorrow?"}]
USED = ("qwen2.5", "qwen3", "qwen3.5", "llama3", "mistral", "ministral", "gpt-oss")
FORMS = [
    *((name, ASKED, False) for name in FAMILIES if name != "own"),
    *((name, [*ASKED, *ANSWERED], False) for name in FAMILIES if name != "own"),
    *((name, ASKED, True) for name in USED),
    *((name, [*ASKED, *CALLED], True) for name in USED),
    *((name, [*ASKED, *CALLED, *ANSWERED], True) for name in USED),
]


def sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message as clients send it: arguments as JSON in a text, and no content beside a call."""
    if "tool_calls" not in message:
        return message
    function = {**CALL["function"], "arguments": json.dumps(CALL["function"]["arguments"])}  # type: ignore[dict-item]
    return {**message, "content": None, "tool_calls": [{**CALL, "function": function}]}


def blocks(message: dict[str, Any]) -> dict[str, Any]:
    """A message in Anthropic's parts."""
    if message["role"] == "tool":
        part = {"type": "tool_result", "tool_use_id": "abcdefghi", "content": message["content"]}
        return {"role": "user", "content": [part]}
    if "tool_calls" not in message:
        return message
    use = {"type": "tool_use", "id": "abcdefghi", "name": "get_weath", "input": CALL["function"]["arguments"]}  # type: ignore[index]
    return {"role": "assistant", "content": [use]}


@pytest.mark.parametrize(("name", "messages", "tools"), FORMS)
def test_ids_of_a_request_are_those_of_transformers(name: str, messages: list[dict[str, Any]], tools: bool) -> None:
    tokenizer = Reference(FAMILIES[name]).tokenizer
    models = SimpleNamespace(spec=SimpleNamespace(name="m", vocab_size=len(tokenizer)), chat_template=lambda _: "")
    encoder = Encoder(tokenizer)
    writer: Any = SimpleNamespace(
        models=models, sides=["base"], name="m", tokenizer=tokenizer, encoder=encoder, chat_template=""
    )
    prompts, given = Prompts(writer, 100_000), [TOOL] if tools else None
    text = tokenizer.apply_chat_template(messages, tools=given, add_generation_prompt=True, tokenize=False)
    wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
    for form in (sent, *([blocks] if name.startswith("qwen") else [])):
        request = {"model": "", "messages": list(map(form, messages)), **({"tools": given} if given else {})}
        assert prompts.prepare(msgspec.convert(request, ChatRequest)).prompt == wanted
