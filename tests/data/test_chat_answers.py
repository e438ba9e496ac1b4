"""What the model writes of an answer, for templates that write strings of it in odd places or forms."""

from __future__ import annotations

import itertools
import json
from datetime import datetime
from typing import Any

import pytest
from support.chat_templates import FAMILIES
from support.tokenizer_kinds import added, byte_level
from transformers import PreTrainedTokenizerFast

from engine.data.chats import Chats, find_template
from engine.data.conversations import RowReader
from engine.tokenization.chat_template import RenderError
from engine.tokenization.encoder import Encoder
from engine.tokenization.marked_conversation import SplitError

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

GREETED = (  # as Qwen's: instructions of its own, if there is a message
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|turn|>system<|message|>Help.<|end|>{% endif %}"
    "<|turn|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant<|message|>{% endif %}"
)
BEGUN = GREETED.replace("loop.first and", "false and").replace("<|turn|>{{", "{{ '<think>' if loop.first }}<|turn|>{{")
"As Llama 3's, which puts what begins a text before its first message."
ASKS = (  # as Qwen3.5's
    "{% if messages|selectattr('role', 'equalto', 'user')|list|length == 0 %}{{ raise_exception('nobody asks') }}"
    "{% endif %}" + GREETED
)
ASKING = PLAIN.replace(PROMPT, "<|turn|>assistant<|message|>")
"As Cohere's: a prompt for the next answer, whether it is asked for or not."
TOLD = (  # as DeepSeek's: arguments as text
    "{% for m in messages %}<|turn|>{{ m.role }}<|message|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ '(' + c.function.name + ' ' + c.function.arguments + ')' }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant<|message|>{% endif %}"
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


@pytest.mark.parametrize("before", [[], [{"role": "system", "content": "Be brief."}]])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_may_begin_with_an_answer(name: str, before: list[dict[str, Any]]) -> None:
    """It is trained on as transformers writes it, or refused on one line that says why."""
    family = FAMILIES[name]
    backend = byte_level([added(token, special=True) for token in family.control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=family.source, eos_token="<|endoftext|>"
    )
    encoder = Encoder(tokenizer)
    template = find_template(tokenizer, encoder, "")
    assert template is not None
    messages = [
        *before,
        {"role": "assistant", "content": "Welcome größe."},
        {"role": "user", "content": "Then what?"},
        {"role": "assistant", "content": "This."},
    ]
    now = datetime(2026, 11, 30)  # noqa: DTZ001 - as templates write it
    chats, row = Chats(encoder, template), RowReader({}, dated=True).read({"messages": messages}, now)
    if name == "gemma3":
        problem = f"^message {len(before) + 1} is an answer before any request, for which it has no prompt [(].*[)]$"
        with pytest.raises((RenderError, SplitError), match=problem):
            chats.render(row)
        return
    [encoded] = chats.encode([row], None)
    if not template.names_date:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert encoder.decode(encoded.ids.tolist()) == text
    said = encoder.decode(encoded.ids[encoded.learnt].tolist())
    first, _, second = said.partition("This.")
    assert "Welcome größe." in first
    assert "Then what?" not in said
    assert "Be brief." not in said
    later = [*before, {"role": "user", "content": "Hello?"}, *messages[len(before) :]]
    [other] = chats.encode([RowReader({}, dated=True).read({"messages": later}, now)], None)
    # What is learnt of it is what is learnt behind a request.
    assert encoder.decode(other.ids[other.learnt].tolist()) == said
    assert second


@pytest.mark.parametrize("template", [GREETED, BEGUN, ASKS])
def test_nothing_before_a_first_answer_is_learnt_but_its_own_turn(template: str) -> None:
    messages = [
        {"role": "assistant", "content": "Welcome."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    _, said, ids, wanted = pieces(template, messages)
    assert said == ["Welcome.<|end|>", "a<|end|>"]
    assert ids == wanted


def test_a_prompt_that_nobody_asked_for_is_not_learnt() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]
    text, said, ids, wanted = pieces(ASKING, messages)
    assert said == ["a<|end|>", "b<|end|>"]
    assert ids == wanted
    assert text.endswith("b<|end|><|turn|>assistant<|message|>")


def test_a_template_may_take_arguments_as_text() -> None:
    arguments = {"q": "größe <|end|>", "n": [1, None, {"k": True}]}
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": call(**arguments)},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    backend = byte_level([added(name, special=True) for name in CONTROL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TOLD, eos_token="<|end|>")
    encoder = Encoder(tokenizer)
    template = find_template(tokenizer, encoder, "")
    assert template is not None
    chats = Chats(encoder, template)
    row = RowReader({}).read({"messages": messages})
    [encoded] = chats.encode([row], None)
    as_text = json.dumps(arguments, ensure_ascii=False)
    written = [
        messages[0],
        {**messages[1], "tool_calls": [{**call()[0], "function": {"name": "look_up", "arguments": as_text}}]},
        *messages[2:],
    ]
    assert encoder.decode(encoded.ids.tolist()) == tokenizer.apply_chat_template(written, tokenize=False)
    said = encoder.decode(encoded.ids[encoded.learnt].tolist())
    assert said == f"(look_up {as_text})<|end|>a<|end|>"
    # Four turns end; the one that an argument spells is text.
    assert encoded.ids.tolist().count(backend.token_to_id("<|end|>")) == 4
    prompt = chats.prompt(row.messages[:3])
    assert prompt == encoded.ids.tolist()[: len(prompt)]
    row = RowReader({}).read({"messages": [{"role": "user", "content": "u"}, {**messages[1]}]})
    refusing = find_template(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template="{{ raise_exception('never') }}", eos_token="<|end|>"
        ),
        encoder,
        "",
    )
    assert refusing is not None
    with pytest.raises(RenderError, match=r"^never$"):
        Chats(encoder, refusing).render(row)


def test_a_message_that_marked_answers_leave_out_is_refused() -> None:
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}<|message|>{% if m.role == 'assistant' %}{% generation %}"
        "{% if loop.last %}{{ m.content }}{% endif %}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    _, said, ids, wanted = pieces(template, asked)
    assert (said, ids) == (["a<|end|>"], wanted)
    with pytest.raises(SplitError, match="it does not write message 2"):
        pieces(template, [*asked, *asked])


def test_a_template_has_the_processors_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a row is read or refused as on an idle one."""
    clock = itertools.count(step=1000)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    _, said, _, _ = pieces(PLAIN, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    assert said == ["<|message|>a<|end|>"]


OPEN = (  # as GLM's: nothing ends a turn but the next one's token
    "{% for m in messages %}{{ '<|message|>' if m.role == 'tool' else '<|turn|>' }}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<think>{{ c.function.name }}</think>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>{% endif %}"
)


def test_where_only_the_next_turn_ends_an_answer_a_call_learns_its_token_too() -> None:
    calls = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": calls},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]
    text, learnt, ours, theirs = pieces(OPEN, messages)
    assert text == "<|turn|>a<|turn|>b<think>look</think><|message|>r<|turn|>c<|turn|>d<|turn|>e"
    assert learnt == ["b<think>look</think><|message|>", "c<|turn|>", "e"]
    assert ours == theirs
