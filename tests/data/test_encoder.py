from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.assets import asset
from engine.tokenization import pieces
from engine.tokenization.encoder import Encoder, demo_encoder

ENCODER = demo_encoder()


@given(text=st.text(max_size=300), path=st.from_regex(r"[a-z/]{1,20}\.py", fullmatch=True))
def test_a_document_comes_back_exactly(text: str, path: str) -> None:
    (ids,) = ENCODER.encode_documents([(path, text)])
    assert ENCODER.decode([int(token) for token in ids]) == f"<|file_sep|>{path}\n{text}<|endoftext|>"
    assert list(ids).count(ENCODER.end) == 1
    assert ids.dtype == np.uint32


def test_a_special_tokens_name_in_a_file_is_text() -> None:
    text = "x = '<|endoftext|>' + '<|fim_prefix|><|file_sep|>'\n"
    (ids,) = ENCODER.encode_documents([("<|endoftext|>.py", text)])
    assert [int(token) for token in ids if token >= ENCODER.vocabulary - 7] == [ENCODER.file_mark, ENCODER.end]
    assert text in ENCODER.decode([int(token) for token in ids])


def test_long_documents_are_cut_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 50)
    for text in ("x = 1\n" * 100, "y" * 333, "\n" * 120, "é\u0301\r\n" * 60):
        (ids,) = ENCODER.encode_documents([("a.py", text)])
        assert ENCODER.decode([int(token) for token in ids]) == f"<|file_sep|>a.py\n{text}<|endoftext|>"


def test_takes_tokenizers_of_both_libraries_and_leaves_them_alone(demo_tokenizer: Tokenizer) -> None:
    fast = AutoTokenizer.from_pretrained(asset("demo-model"))
    document = [("a.py", "def f():\n    return '<|endoftext|>'\n")]
    expected = ENCODER.encode_documents(document)[0].tolist()
    assert Encoder(fast).encode_documents(document)[0].tolist() == expected
    assert Encoder(demo_tokenizer).encode_documents(document)[0].tolist() == expected
    assert Encoder(demo_tokenizer).fingerprint == ENCODER.fingerprint
    assert not demo_tokenizer.encode_special_tokens
    assert fast("<|endoftext|>")["input_ids"] == [ENCODER.end]


def test_truncation_and_padding_of_the_given_tokenizer_do_not_matter(demo_tokenizer: Tokenizer) -> None:
    changed = Tokenizer.from_str(demo_tokenizer.to_str())
    changed.enable_truncation(5)
    changed.enable_padding(length=50)
    document = [("a.py", "x = 1\n" * 20)]
    assert Encoder(changed).encode_documents(document)[0].tolist() == ENCODER.encode_documents(document)[0].tolist()


def test_dropout_in_a_tokenizer_file_does_not_matter(demo_tokenizer: Tokenizer, tmp_path: Path) -> None:
    stored = json.loads(demo_tokenizer.to_str())
    stored["model"]["dropout"] = 0.5
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(stored))
    random = Tokenizer.from_file(str(path))
    text = "def function(argument):\n    return argument + 1\n" * 20
    wanted = demo_tokenizer.encode(text, add_special_tokens=False).ids
    assert any(random.encode(text, add_special_tokens=False).ids != wanted for _ in range(5))
    for _ in range(5):
        encoder = Encoder(random)
        assert encoder.encode_prompt(text)[len(encoder.first) :] == wanted
        [ids] = encoder.encode_documents([("a.py", text)])
        assert ids.tolist() == ENCODER.encode_documents([("a.py", text)])[0].tolist()


def test_without_a_file_token_the_path_is_a_comment() -> None:
    plain = Tokenizer.from_str(demo_encoder()._tokenizer.to_str().replace("<|file_sep|>", "<|other|>"))
    (ids,) = Encoder(plain).encode_documents([("a.py", "x\n")])
    assert Encoder(plain).decode(ids.tolist()) == "# a.py\nx\n<|endoftext|>"


def test_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="not a fast tokenizer"):
        Encoder("gpt2")
    with pytest.raises(ValueError, match="no token that ends"):
        Encoder(Tokenizer(WordLevel({"a": 0}, unk_token="a")))


def test_demo_tokenizer_has_its_special_tokens() -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(asset("demo-model"))
    assert fast.is_fast
    assert len(fast) == ENCODER.vocabulary == 8192
    assert fast.eos_token == fast.pad_token == "<|endoftext|>"
    for name in ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_sep|>"):
        assert fast.convert_ids_to_tokens(fast.convert_tokens_to_ids(name)) == name
        assert name in fast.all_special_tokens
