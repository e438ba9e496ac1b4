"""Rows of conversations, and data sets that are built of them with a tokenizer that has a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from support.chat_templates import FAMILIES
from support.tokenizer_kinds import added, byte_level
from transformers import PreTrainedTokenizerFast

from engine.config import DataSection
from engine.data.dataset import Dataset, build_dataset
from engine.tokenization.encoder import Encoder

TEXT = "Wie groß ist 日本? "
ASKED = {"role": "user", "content": TEXT}
SAID = {"role": "assistant", "content": "Groß genug."}
GOOD = [ASKED, SAID]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}


def tokenizer(family: str = "qwen2.5", template: str | None = "") -> PreTrainedTokenizerFast:
    known = FAMILIES[family]
    backend = byte_level([added(name, special=True) for name in known.control])
    template = known.source if template == "" else template
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", chat_template=template)


def build(tmp_path: Path, path: Path, *, limit: int | None = None, model: Any = None, **options: Any) -> Dataset:
    data = DataSection(datasets=[str(path)], **options)
    cache = tmp_path / "cache"
    return build_dataset(data, tokenizer=model or tokenizer(), context=limit or 512, cache=cache, limit=limit)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learnt_texts(dataset: Dataset, model: Any = None) -> list[str]:
    """What is predicted of each document, in the store's order."""
    encoder, store = Encoder(model or tokenizer()), dataset.store
    found = []
    for start, stop in zip(store.offsets(), store.offsets()[1:], strict=False):
        ids = store.tokens[start:stop]
        learnt = np.ones(len(ids), bool) if store.learnt is None else store.learnt.among(int(start), int(stop))
        found.append(encoder.decode(ids[learnt].tolist()))
    return found


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"messages": GOOD}, "Groß genug.<|im_end|>"),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": TEXT}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Groß genug."}]},
            ]
        },
        "Groß genug.<|im_end|>",
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", "value": "Groß genug."}]},
        "Groß genug.<|im_end|>",
    ),
    "text messages": ({"messages": json.dumps(GOOD)}, "Groß genug.<|im_end|>"),
    "alpaca": ({"instruction": "Say", "input": TEXT, "output": "Groß genug."}, "Groß genug.<|im_end|>"),
    "alpaca with history": (
        {"instruction": "Say", "input": "", "output": "Groß genug.", "history": [["a", "b"]], "system": "Be brief."},
        "b<|im_end|>Groß genug.<|im_end|>",
    ),
    "question": ({"question": TEXT, "answer": "Groß genug."}, "Groß genug.<|im_end|>"),
    "continued": ({"prompt": TEXT, "completion": "Groß genug."}, "Groß genug.<|endoftext|>"),
    "prompt of messages": (
        {"prompt": [ASKED, {"role": "assistant", "content": "not this"}, ASKED], "completion": [SAID]},
        "Groß genug.<|im_end|>",
    ),
    "chosen": (
        {"chosen": GOOD, "rejected": [ASKED, {"role": "assistant", "content": "Nein."}]},
        "Groß genug.<|im_end|>",
    ),
    "chosen with a prompt": ({"prompt": TEXT, "chosen": "Groß genug.", "rejected": "Nein."}, "Groß genug.<|im_end|>"),
    "transcript": (
        {"chosen": "\n\nHuman: a?\n\nAssistant: x\n\nHuman: b?\n\nAssistant: Groß genug.", "rejected": "y"},
        "Groß genug.<|im_end|>",
    ),
    "calls": (
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "seen"},
                SAID,
            ],
            "tools": [{"name": "look", "parameters": {"type": "object"}}],
        },
        '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call><|im_end|>Groß genug.<|im_end|>',
    ),
    "calls as text": (
        {
            "messages": [
                ASKED,
                {
                    "role": "assistant",
                    "tool_calls": [{**CALL, "function": {"name": "look", "arguments": '{"at": "x"}'}}],
                },
                {"role": "tool", "content": "seen"},
                SAID,
            ],
            "tools": json.dumps([{"name": "look", "parameters": {}}]),
        },
        '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call><|im_end|>Groß genug.<|im_end|>',
    ),
    "weights": (
        {"messages": [ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "weight": 1}, ASKED, {**SAID, "train": False}]},
        "Groß genug.<|im_end|>",
    ),
}


def some(row: dict[str, Any], count: int = 8) -> list[dict[str, Any]]:
    """Rows that differ in what is asked, so that none is a copy of another."""
    return [
        json.loads(
            json.dumps(row, ensure_ascii=False)
            .replace("Wie", f"Wie {i}")
            .replace("a?", f"a{i}?")
            .replace('"Say"', f'"Say {i}"')
        )
        for i in range(count)
    ]
