"""Tokenizers of model folders: the file is the truth, whatever class, flag or default is named beside it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from support.tokenizer_kinds import TEXTS, added, byte_fallback
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from engine.errors import EliteError
from engine.models.catalogue import catalogue, find_model
from engine.models.loading import load_tokenizer
from engine.tokenization.encoder import Encoder, first_tokens

FAMILIES = sorted(
    {spec.family for spec in catalogue().values()} | {"mistral", "phi3", "gemma2", "mixtral", "qwen3_moe"}
)
CLASSES = (None, "Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "Unheard")
SHAPE = {
    "vocab_size": 700,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def odd() -> Tokenizer:
    """Splits as no class of transformers does, and does not normalise."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[!-/:-~]?[A-Za-z]+|\s+|."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<begin>", "<end>"])
    )
    return tokenizer


ODD = odd()
TEXT = TEXTS[0] + "cafe\u0301 1234567\n"


@pytest.fixture
def folder(tmp_path):
    """A model's folder without weights that count: config.json, tokenizer.json, and what a test adds."""

    def make(tokenizer=ODD, family="llama", config=None, **settings):
        path = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**SHAPE, "model_type": family, **(config or {})}))
        save_file({"model.norm.weight": torch.zeros(2)}, path / "model.safetensors")
        tokenizer.save(str(path / "tokenizer.json"))
        if settings:
            (path / "tokenizer_config.json").write_text(json.dumps(settings))
        return path

    return make


def load(path, family="llama"):
    from dataclasses import replace

    return load_tokenizer(replace(find_model("codellama-7b"), path=path, family=family))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_wins_over_every_class(folder, family):
    wanted = ODD.encode(TEXT, add_special_tokens=False).ids
    for name in CLASSES:
        named = {} if name is None else {"tokenizer_class": name}
        tokenizer = load(folder(family=family, eos_token="<end>", bos_token="<begin>", **named), family)
        assert tokenizer(TEXT)["input_ids"] == wanted, name
        assert Encoder(tokenizer).encode_prompt(TEXT) == wanted, name


def test_settings_add_nothing_to_the_file(folder):
    path = folder(eos_token="<end>", pad_token="<pad>", additional_special_tokens=["<more>", "def"])
    tokenizer = load(path)
    assert tokenizer.get_vocab() == ODD.get_vocab()
    assert Encoder(tokenizer).encode_prompt("def <more> <pad>") == ODD.encode("def <more> <pad>").ids


BEGINS = Tokenizer.from_str(ODD.to_str())
BEGINS.post_processor = processors.TemplateProcessing(
    single="<begin> $A <end>", special_tokens=[("<begin>", 0), ("<end>", 1)]
)


@pytest.mark.parametrize(
    ("tokenizer", "flags", "first"),
    [
        (ODD, {}, ()),
        (ODD, {"add_bos_token": False}, ()),
        (ODD, {"add_bos_token": True, "add_eos_token": True}, ()),
        (BEGINS, {}, (0,)),
        (BEGINS, {"add_bos_token": False, "add_eos_token": False}, (0,)),
        (BEGINS, {"add_bos_token": True}, (0,)),
    ],
)
def test_what_begins_a_text_is_the_same_after_saving(folder, tmp_path, tokenizer, flags, first):
    loaded = load(folder(tokenizer, bos_token="<begin>", eos_token="<end>", **flags))
    encoder = Encoder(loaded)
    assert encoder.first == first
    [ids] = encoder.encode_documents([("a.py", "x\n")])
    assert ids.tolist() == [*first, *ODD.encode("# a.py\nx\n").ids, 1]
    loaded.save_pretrained(tmp_path / "saved")
    assert first_tokens(Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))) == first
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert again(TEXT)["input_ids"][: len(first) + 40] == [*first, *ODD.encode(TEXT).ids][: len(first) + 40]
    assert (again.eos_token, again.eos_token_id) == ("<end>", 1)


def padded():
    tokenizer = Tokenizer.from_str(BEGINS.to_str())
    tokenizer.enable_padding(direction="left", length=30)
    tokenizer.enable_truncation(1)
    return tokenizer


def test_padding_is_no_first_token(folder):
    assert Encoder(load(folder(padded(), eos_token="<end>"))).first == (0,)


def test_the_end_token_is_named_in_what_is_saved(folder, tmp_path):
    cases = (
        ({"eos_token": "<begin>"}, {}, "<begin>"),
        ({}, {"eos_token_id": 1}, "<end>"),
        ({}, {"eos_token_id": [1, 0]}, "<end>"),
    )
    for number, (settings, config, end) in enumerate(cases):
        tokenizer = load(folder(config=config, **settings))
        assert tokenizer.eos_token == end
        tokenizer.save_pretrained(tmp_path / f"saved-{number}")
        assert PreTrainedTokenizerFast.from_pretrained(tmp_path / f"saved-{number}").eos_token == end
    usual = byte_fallback()
    assert load(folder(usual, config={"eos_token_id": 300})).eos_token == "</s>"


@pytest.mark.parametrize(
    ("settings", "config", "problem"),
    [
        ({"eos_token": "<|im_end|>"}, {}, "'<|im_end|>'"),
        ({}, {"eos_token_id": 300}, "nothing says which token ends a text"),
        ({}, {}, "nothing says which token ends a text"),
    ],
)
def test_an_end_that_is_not_known_is_refused(folder, settings, config, problem):
    with pytest.raises(EliteError) as caught:
        load(folder(config=config, **settings))
    assert caught.value.code == "model-directory-invalid"
    assert problem in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_tokenizer_is_refused(folder):
    path = folder(eos_token="<end>")
    for content in ("{", "[]", '{"model": {}}'):
        (path / "tokenizer.json").write_text(content)
        with pytest.raises(EliteError) as caught:
            load(path)
        assert caught.value.code in ("model-directory-invalid", "model-family-unsupported")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '"text"', '{"eos_token": 5}', '{"eos_token": ["<end>"]}', "{"])
def test_settings_of_another_kind_are_refused(folder, content):
    path = folder()
    (path / "tokenizer_config.json").write_text(content)
    with pytest.raises(EliteError) as caught:
        load(path)
    assert caught.value.code in ("model-directory-invalid", "model-family-unsupported")
    assert "\n" not in str(caught.value)


def test_vocabulary_and_merges_are_converted(folder):
    """Without tokenizer.json the class is the truth: only it knows how to split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = folder(tokenizer, family="starcoder2", eos_token="<|endoftext|>", tokenizer_class="GPT2Tokenizer")
    (path / "tokenizer.json").unlink()
    tokenizer.model.save(str(path))
    found = load(path, "starcoder2")
    assert found(TEXT)["input_ids"] == tokenizer.encode(TEXT).ids
    merges = (path / "merges.txt").read_text()
    for length in (0, len(merges) // 2):
        (path / "merges.txt").write_text(merges[:length])
        with pytest.raises(EliteError, match=r"no line of merges\.txt makes"):
            load(path, "starcoder2")
    (path / "vocab.json").write_text(json.dumps({"a": 0, "b": 3}))
    (path / "merges.txt").unlink()
    with pytest.raises(EliteError) as caught:
        load(path, "starcoder2")
    assert caught.value.code == "model-directory-invalid"


def test_a_sentencepiece_file_alone_is_one_line(folder):
    path = folder(byte_fallback([added("<x>")]), eos_token="</s>")
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(EliteError) as caught:
        load(path)
    assert caught.value.code == "model-directory-invalid"
    assert "\n" not in str(caught.value)
