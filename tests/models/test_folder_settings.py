"""Tokenizer and settings of a model's folder: those that make no model are refused in one line."""

from __future__ import annotations

import json
import re

import pytest
from support.model_folders import CPU, edit_json, loading_refusal

from engine.errors import EliteError
from engine.models.catalogue import find_model
from engine.models.loading import load_model, load_tokenizer
from engine.tokenization.encoder import Encoder


def add_token(path, text, *, special):
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append({"id": 8192, "content": text, "special": special, **token})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_a_token_without_a_row_is_refused(make):
    path = make()
    add_token(path, "returns nothing", special=False)
    with pytest.raises(EliteError, match="'returns nothing' as id 8,192, and its model has 8,192 rows"):
        load_tokenizer(find_model(str(path)))


def test_a_control_token_without_a_row_that_nothing_emits_is_left_alone(make):
    path = make()
    add_token(path, "<image_soft_token>", special=True)
    assert load_tokenizer(find_model(str(path))).is_fast


HOSTILE_SETTINGS = {
    "a number format that torch lacks": {"dtype": "evil", "torch_dtype": "int8"},
    "unknown kinds of layers": {"layer_types": ["evil", "\x1b[31m"]},
    "a vocabulary of 10^12": {"vocab_size": 10**12},
    "a size of 10^30": {"hidden_size": 10**30},
    "an endless rope": {"max_position_embeddings": 10**300},
    "an activation that is code": {"hidden_act": "os.system"},
    "a rope of no kind": {"rope_parameters": {"rope_type": "evil", "rope_theta": 0}},
}


@pytest.mark.parametrize("settings", HOSTILE_SETTINGS.values(), ids=HOSTILE_SETTINGS)
def test_settings_that_make_no_model_are_refused_in_one_line(make, settings):
    path = make()
    edit_json(path, "config.json", **settings)
    with pytest.raises(EliteError) as caught:
        load_model(find_model(str(path)), CPU)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def edit_tokenizer(path, **values):
    edit_json(path, "tokenizer.json", **values)
    return load_tokenizer(find_model(str(path)))


def test_a_tokenizer_that_multiplies_a_text_is_refused(make):
    grow = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 16}
    shrink = {"type": "Replace", "pattern": {"String": "e" * 16}, "content": "e"}
    assert Encoder(edit_tokenizer(make(), normalizer={"type": "Sequence", "normalizers": [grow, shrink]}))
    for steps in ([grow] * 3, [{"type": "Sequence", "normalizers": [grow, grow]}, grow]):
        tokenizer = edit_tokenizer(make(name=f"b{len(steps)}"), normalizer={"type": "Sequence", "normalizers": steps})
        with pytest.raises(EliteError, match=r"4,096 times longer"):
            Encoder(tokenizer)


def test_a_tokenizer_whose_pattern_gives_up_is_one_line(make):
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$|(\\w+\\s?)*!"}, "behavior": "Isolated", "invert": False}
    encoder = Encoder(edit_tokenizer(make(), pre_tokenizer=pattern))
    with pytest.raises(EliteError, match="tokenizer cannot be used"):
        encoder.encode_documents([("name.py", "word " * 40)])


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize(
    "content", ["{", "[]", "", "\ufeff{}", '"a"', "[" * 100_000], ids=["cut", "list", "empty", "mark", "text", "deep"]
)
def test_a_broken_file_of_settings_is_named(make, name, content):
    path = make()
    (path / name).write_text(content, encoding="utf-8")
    with pytest.raises(EliteError) as caught:
        load_tokenizer(find_model(str(path)))
    assert caught.value.code == "model-directory-invalid"
    assert f"{path}: {name} cannot be read" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4, "factor": 2.0}}, "does not know 'foo'"),
        ({"hidden_act": "foo"}, "does not know 'foo'"),
        ({"rms_norm_eps": "1e-5"}, "config.json cannot be read.*rms_norm_eps.*str"),
        ({"eos_token_id": "x"}, "config.json cannot be read.*eos_token_id"),
    ],
)
def test_a_value_that_the_library_refuses_is_named(make, values, said):
    path = make()
    edit_json(path, "config.json", **values)
    assert re.search(said, loading_refusal(path))
