"""Labels of conversations against an independent rendering: transformers writes, regular expressions find the turns."""

from __future__ import annotations

import random
import re
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from support.chat_templates import FAMILIES, Family
from support.tokenizer_kinds import added, byte_fallback, byte_level
from transformers import PreTrainedTokenizerFast

from engine.data.chats import Chats, find_template
from engine.data.conversations import RowReader
from engine.tokenization.encoder import Encoder

CONVERSATIONS = 100
"benchmarks/chat_labels.py takes 500."
WORDS = (
    "def",
    "x = 1",
    "日本語",
    "größe",
    "🦜🏽",
    "ответ",
    "  ",
    "\n",
    "\t",
    "a\u0301",
    "{%",
    "{{ x }}",
    '"',
    "\\",
    "'",
    "<b>",
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Looks up <|im_end|> the weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where"}},
                "required": ["city"],
            },
        },
    }
]


def said(draw: random.Random, family: Family, *, least: int = 1) -> str:
    """Text with multi-byte letters, white space around it, and the family's own tokens in it."""
    words = [
        draw.choice((*WORDS, *family.control) if draw.random() < 0.8 else WORDS) for _ in range(draw.randint(least, 9))
    ]
    return draw.choice(("", "", " ", "\n")) + "w" + "".join(words) + draw.choice(("", "", " ", "\n\n"))


def conversation(draw: random.Random, family: Family, *, tools: bool) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.5:
        messages.append({"role": "system", "content": said(draw, family)})
    turns = draw.randint(1, 4)
    for turn in range(turns):
        messages.append({"role": "user", "content": said(draw, family)})
        if tools and family.tools and draw.random() < 0.6:
            arguments = {
                "city": said(draw, family),
                "n": draw.choice((3, None, True, 1.5, [said(draw, family)], {"k": "v"})),
            }
            call = {"type": "function", "id": "abcdefghi", "function": {"name": "get_weather", "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": "abcdefghi", "content": said(draw, family)})
        answer = {"role": "assistant", "content": said(draw, family)}
        if family.thinks and draw.random() < 0.3 and turn == turns - 1:
            answer["reasoning_content"] = said(draw, family)
        messages.append(answer)
    return {"messages": messages, **({"tools": TOOLS} if tools else {})}


def replaced(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            key: replaced(inner, change) if key not in ("role", "type", "id") else inner for key, inner in value.items()
        }
    return [replaced(inner, change) for inner in value] if isinstance(value, list) else value


class Reference:
    """Transformers' rendering of a conversation in which no text spells a control token, with the turns in it."""

    def __init__(self, family: Family) -> None:
        self.family = family
        backend = byte_level([added(name, special=True) for name in family.control])
        settings = {"eos_token": "</s>" if "</s>" in family.control else "<|endoftext|>"}
        begin = next((name for name in ("<s>", "<|begin_of_text|>", "<bos>") if name in family.control), None)
        settings |= {"bos_token": begin} if begin else {}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=family.text(), **settings)
        names = sorted(family.control, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, names)))
        self.stand_ins = {name: f"q{chr(0xE000 + number)}q" for number, name in enumerate(names)}

    def render(self, row: dict[str, Any]) -> list[tuple[str, bool, bool]]:
        """Text, whether the model writes it, and whether it is a control token, of each piece."""
        quiet = replaced(row, lambda text: self.control.sub(lambda found: self.stand_ins[found[0]], text))
        text = self.tokenizer.apply_chat_template(quiet["messages"], tools=quiet.get("tools"), tokenize=False)
        spans = [found.span(1) for found in re.finditer(self.family.turn, text, re.DOTALL | re.MULTILINE)]
        borders = {0, len(text), *(place for span in spans for place in span)}
        tokens = [found.span() for found in self.control.finditer(text)]
        borders |= {place for span in tokens for place in span}
        pieces = []
        for start, stop in zip(sorted(borders), sorted(borders)[1:], strict=False):
            inside = any(first <= start and stop <= last for first, last in spans)
            pieces.append((self.spelled(text[start:stop]), inside, (start, stop) in tokens))
        return pieces

    def spelled(self, text: str) -> str:
        for name, stand_in in self.stand_ins.items():
            text = text.replace(stand_in, name)
        return text

    def tokens(self, row: dict[str, Any]) -> tuple[list[int], list[bool]]:
        """Ids and labels, by the tokenizers library, each piece alone; a spelled token letter by letter around it."""
        ids: list[int] = []
        labels: list[bool] = []
        plain = self.tokenizer.backend_tokenizer
        plain.encode_special_tokens = True
        for text, inside, control in self.render(row):
            found = [plain.token_to_id(text)] if control else plain.encode(text, add_special_tokens=False).ids
            ids += found
            labels += [inside] * len(found)
        return ids, labels


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_labels_equal_an_independent_rendering(name: str, tools: bool) -> None:
    family = FAMILIES[name]
    reference = Reference(family)
    encoder = Encoder(reference.tokenizer)
    template = find_template(reference.tokenizer, encoder, "")
    assert template is not None
    chats, reader = Chats(encoder, template), RowReader({}, dated=True)
    draw, now = random.Random(f"{name} {tools}"), datetime.now()  # noqa: DTZ005 - as templates write it
    for _ in range(CONVERSATIONS):
        row = conversation(draw, family, tools=tools)
        [encoded] = chats.encode([reader.read(row, now)], None)
        ids, labels = reference.tokens(row)
        assert encoder.decode(encoded.ids.tolist()) == encoder.decode(ids), row
        assert encoded.ids.tolist() == ids, row
        assert encoded.learnt.tolist() == labels, row
        assert np.count_nonzero(encoded.learnt)


@pytest.mark.parametrize("scheme", ["legacy", "always", "first", "never"])
def test_texts_between_control_tokens_begin_as_in_a_whole_text(scheme: str) -> None:
    """SentencePiece puts a space before a text, or before every text behind a control token, or nowhere."""
    names = FAMILIES["mistral"].control[2:]
    backend = byte_fallback([added(name, special=True) for name in names], scheme)
    source = FAMILIES["mistral"].source
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=source, bos_token="<s>", eos_token="</s>", add_bos_token=False
    )
    encoder = Encoder(tokenizer)
    template = find_template(tokenizer, encoder, "")
    assert template is not None
    chats = Chats(encoder, template)
    messages = [{"role": "user", "content": "x = 1 for größe"}, {"role": "assistant", "content": "def f(): pass"}]
    [encoded] = chats.encode([RowReader({}).read({"messages": [*messages, *messages]})], None)
    text = tokenizer.apply_chat_template([*messages, *messages], tokenize=False)
    assert encoded.ids.tolist() == backend.encode(text, add_special_tokens=False).ids


def test_white_space_that_a_control_token_takes_with_it() -> None:
    """Phi 3's tokens strip what is behind them, and some before them."""
    control = FAMILIES["phi"].control
    backend = byte_level([added(name, special=True, rstrip=True, lstrip=name == "<|end|>") for name in control])
    source = FAMILIES["phi"].source
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=source, eos_token="<|endoftext|>")
    encoder = Encoder(tokenizer)
    template = find_template(tokenizer, encoder, "")
    assert template is not None
    messages = [{"role": "user", "content": " x = 1 "}, {"role": "assistant", "content": "y \n"}]
    [encoded] = Chats(encoder, template).encode([RowReader({}).read({"messages": messages})], None)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert encoded.ids.tolist() == backend.encode(text, add_special_tokens=False).ids
    assert encoder.decode(encoded.ids[encoded.learnt].tolist()) == "y<|end|><|endoftext|>"
