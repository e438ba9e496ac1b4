"""Texts encoded by their distinct lines have the ids that the tokenizer itself gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_kinds import KINDS
from tokenizers import Tokenizer

from engine.assets import asset
from engine.tokenization import plain_text
from engine.tokenization.encoder import Encoder
from engine.tokenization.repeated_lines import repeated_lines

STORED: dict[str, Any] = json.loads(asset("demo-model", "tokenizer.json").read_text(encoding="utf-8"))
PIECES = [
    *("\n", "\n\n", " ", "  ", "    ", "\t", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"),
    *(
        "a",
        "Z",
        "foo",
        "'s",
        "'",
        "12",
        "1234",
        ".",
        "...",
        "==",
        "_",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "😀",
        "\u200b",
    ),
    *("<|endoftext|>", "# x", '"""', "\0", "\ufeff", "//", "def f():", "return"),
]


def tokenizer(digits: str, normalizer: str | None) -> Tokenizer:
    split, *others = STORED["pre_tokenizer"]["pretokenizers"]
    expression = split["pattern"]["Regex"].replace(r"|\p{N}|", f"|{digits}|")
    steps = [{**split, "pattern": {"Regex": expression}}, *others]
    normal = None if normalizer is None else {"type": normalizer}
    stored = {**STORED, "normalizer": normal, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    return Tokenizer.from_str(json.dumps(stored))


def alone(made: Tokenizer, encoder: Encoder, path: str, text: str) -> list[int]:
    made.encode_special_tokens = True
    assert encoder.file_mark is not None
    return [encoder.file_mark, *made.encode(f"{path}\n{text}").ids, encoder.end]


@pytest.mark.parametrize(("digits", "normalizer"), [(r"\p{N}", None), (r"\p{N}{1,3}", "NFC")])
def test_ids_are_those_of_each_text_alone(digits: str, normalizer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "_FEW_CHARACTERS", 0)
    made = tokenizer(digits, normalizer)
    encoder = Encoder(made)
    assert encoder.plain_text._lines is not None

    @given(st.lists(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), min_size=1, max_size=6))
    @settings(max_examples=300, deadline=None)
    def same(texts: list[str]) -> None:
        texts = [*texts, texts[0], "\n".join(texts)]
        found = encoder.encode_documents([(f"{n}.py", text) for n, text in enumerate(texts)])
        for number, (ids, text) in enumerate(zip(found, texts, strict=True)):
            assert ids.tolist() == alone(made, encoder, f"{number}.py", text)

    same()


def test_source_has_the_ids_of_the_tokenizer_itself() -> None:
    made = tokenizer(r"\p{N}", None)
    encoder = Encoder(made)
    paths = sorted(Path(json.__file__).parent.parent.glob("*.py"))[:60]
    texts = [path.read_bytes().decode() for path in paths]
    found = encoder.encode_documents([(path.name, text) for path, text in zip(paths, texts, strict=True)])
    assert sum(map(len, texts)) > 1_000_000
    for path, text, ids in zip(paths, texts, found, strict=True):
        assert ids.tolist() == alone(made, encoder, path.name, text)


def test_a_vocabulary_without_line_ends_is_none_to_cut_by() -> None:
    stored = json.loads(json.dumps(STORED))
    vocabulary = {token: number for token, number in stored["model"]["vocab"].items() if "Ċ" not in token}
    stored["model"]["vocab"] = vocabulary
    stored["model"]["merges"] = [
        [first, second]
        for first, second in (m.split(" ") if isinstance(m, str) else m for m in stored["model"]["merges"])
        if "Ċ" not in first + second
    ]
    made = Tokenizer.from_str(json.dumps(stored))
    encoder = Encoder(made)
    text = "def f():\n    return 1\n" * 2000
    [ids] = encoder.encode_documents([("a.py", text)])
    assert ids.tolist() == alone(made, encoder, "a.py", text)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tokenizers_encode_whole_texts(kind: str) -> None:
    stored = json.loads(KINDS[kind]().to_str())
    step = stored.get("pre_tokenizer") or {}
    if repeated_lines(stored, {}) is not None:
        assert stored["model"]["type"] == "BPE"
        assert step["pretokenizers"][0]["type"] == "Split"
