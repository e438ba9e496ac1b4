"""What the model writes of an answer, for templates that write strings of it in odd places or forms."""

from __future__ import annotations

from typing import Any

import pytest
from support.tokenizer_kinds import added, byte_level
from transformers import PreTrainedTokenizerFast

from engine.data.chats import Chats, find_template
from engine.data.conversations import RowReader
from engine.tokenization.encoder import Encoder

CONTROL = ("<|turn|>", "<|message|>", "<|end|>", "<think>", "</think>")
TURN = "<|turn|>{{ m.role }}%s<|message|>%s<|end|>"
PROMPT = "{% if add_generation_prompt %}<|turn|>assistant{% endif %}"
NAMED_TWICE = (
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}<|turn|>assistant to={{ c.function.name }}"
    '<|message|><invoke name="{{ c.function.name }}">{% for k, v in c.function.arguments|items %}{{ k }}={{ v }};'
    "{% endfor %}</invoke><|end|>{% endfor %}{% else %}<|turn|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}" + PROMPT
)
PLAIN = "{% for m in messages %}<|turn|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}" + PROMPT
LAST_THOUGHT = (
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' and not loop.last %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}<|turn|>{{ m.role }}<|message|>{{ c }}<|end|>{% endfor %}" + PROMPT
)


def pieces(template: str, messages: list[dict[str, Any]]) -> tuple[str, list[str], list[int], list[int]]:
    """The text, what is learnt of it, and its ids here and by transformers."""
    backend = byte_level([added(name, special=True) for name in CONTROL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, eos_token="<|end|>")
    encoder = Encoder(tokenizer)
    found = find_template(tokenizer, encoder, "")
    assert found is not None
    [encoded] = Chats(encoder, found).encode([RowReader({}).read({"messages": messages})], None)
    ids, learnt = encoded.ids.tolist(), encoded.learnt.tolist()
    said = [""]
    for token, on in zip(ids, learnt, strict=True):
        if on:
            said[-1] += encoder.decode([token])
        elif said[-1]:
            said.append("")
    wanted = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return encoder.decode(ids), [text for text in said if text], ids, wanted


def call(**arguments: Any) -> list[dict[str, Any]]:
    return [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": arguments}}]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({}, ""),
        ({"a": "b"}, "a=b;"),
        ({"a": {"b": ["c", "it's", None, 1.5]}}, """a={'b': ['c', "it's", None, 1.5]};"""),
        ({"todos": [{"text": "<x>", "done": True}]}, "todos=[{'text': '<x>', 'done': True}];"),
        ({"p": "a", "n": 7, "o": {"k": [0, "x"]}}, "p=a;n=7;o={'k': [0, 'x']};"),
        ({"o": [["x"], {"y": "z"}], "p": "a", "q": {}, "r": "b"}, "o=[['x'], {'y': 'z'}];p=a;q={};r=b;"),
    ],
)
def test_a_call_whose_name_is_written_twice_is_learnt_whole(arguments: dict[str, Any], written: str) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": call(**arguments)},
        {"role": "tool", "content": "r", "tool_call_id": "c"},
        {"role": "assistant", "content": "done"},
    ]
    _, said, ids, wanted = pieces(NAMED_TWICE, messages)
    assert said == [
        f' to=look_up<|message|><invoke name="look_up">{written}</invoke><|end|>',
        "<|message|>done<|end|>",
    ]
    assert ids == wanted


def test_control_tokens_within_values_that_python_writes_stay_text() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": call(a={"<|end|>": ["<|turn|>"]})},
    ]
    text, said, ids, wanted = pieces(NAMED_TWICE, messages)
    assert "a={'<|end|>': ['<|turn|>']};" in text
    assert said[0].endswith("</invoke><|end|>")
    assert len(ids) > len(wanted)
    assert ids.count(ids[-1]) == 2  # behind the request and the call, and not within it


@pytest.mark.parametrize("template", [PLAIN, LAST_THOUGHT])
@pytest.mark.parametrize("thought", ["\nhm\n", "", "\n\n", "hm "])
def test_a_think_block_is_tokens_where_the_template_leaves_it_to_the_content(template: str, thought: str) -> None:
    messages = [
        {"role": "user", "content": "<think>no</think>"},
        {"role": "assistant", "content": f"<think>{thought}</think>\n\none"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": f"<think>{thought}</think>\n\ntwo <think>"},
    ]
    text, said, ids, _ = pieces(template, messages)
    first = (
        "<|message|>\n\none<|end|>"
        if template is LAST_THOUGHT
        else f"<|message|><think>{thought}</think>\n\none<|end|>"
    )
    assert said == [first, f"<|message|><think>{thought}</think>\n\ntwo <think><|end|>"]
    backend = byte_level([added(name, special=True) for name in CONTROL])
    assert ids.count(backend.token_to_id("<think>")) == (1 if template is LAST_THOUGHT else 2)
    assert text.count("<think>") == (1 if template is LAST_THOUGHT else 2) + 2
