"""Tiled prompts and paged keys give what whole-sequence generation gives; sampling draws what it should."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import model_without_tiles
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from engine.assets import asset
from engine.config import LoraSection
from engine.generation.forward import LibraryForward, TiledForward, open_forward
from engine.generation.sampling import Sampling, generate, probabilities
from engine.generation.text import printable, stream_text
from engine.models.adapter import attach_adapter, trainable
from tests.streaming.models import FAMILIES, tiny_model


def prompt_of(n, seed=1):
    return torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def by_library(model, prompt, count):
    ids = torch.tensor([prompt])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
        use_cache=True,
    )  # fmt: skip
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_the_library(family):
    model = tiny_model(family).eval()
    attention = model.config._attn_implementation
    prompt = prompt_of(83)
    forward = open_forward(model, 83 + 12, tile=16, page=32)
    assert isinstance(forward, TiledForward)
    assert list(generate(forward, prompt, Sampling(max_tokens=12))) == by_library(model, prompt, 12)
    assert model.config._attn_implementation == attention


def test_families_without_tiles_go_through_the_librarys_cache():
    model = model_without_tiles()
    prompt = prompt_of(40)
    forward = open_forward(model, 60, tile=16)
    assert isinstance(forward, LibraryForward)
    assert list(generate(forward, prompt, Sampling(max_tokens=8))) == by_library(model, prompt, 8)


@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["qwen2", "mistral"]))
def test_logits_do_not_depend_on_tiles_and_pages(n, tile, page, family):
    model = _models(family)
    ids = torch.tensor(prompt_of(n, seed=n))
    logits = TiledForward(model, n, tile=tile, page=page).advance(ids)
    with torch.no_grad():
        expected = model(input_ids=ids[None], use_cache=False).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


_kept: dict[str, object] = {}


def _models(family):
    if family not in _kept:
        _kept[family] = tiny_model(family).eval()
    return _kept[family]


def test_a_long_prompt_never_makes_a_tensor_as_long():
    """Whole-sequence prefill makes hidden states, and masks, of n; here the largest new tensor is a page of keys."""
    model = tiny_model("qwen2", max_position_embeddings=1 << 17).eval()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return out

    n = 20_000
    ids = torch.tensor(prompt_of(n))
    with Watch():
        TiledForward(model, n, tile=256, page=1024).advance(ids)
    page = 1024 * 2 * 16 * 4
    assert largest < 4 * page + ids.nbytes < n * 64 * 4


def test_the_adapter_is_as_it_is_switched():
    model = attach_adapter(tiny_model("qwen2"), LoraSection(rank=4), seed=0).eval()
    plain = copy.deepcopy(tiny_model("qwen2")).eval()
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.tensor(prompt_of(30))
    tuned = open_forward(model, 30, tile=8).advance(ids)
    with model.disable_adapter():
        base = open_forward(model, 30, tile=8).advance(ids)
    torch.testing.assert_close(base, open_forward(plain, 30).advance(ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tuned, base)


def test_a_sequence_has_no_more_room_than_was_asked_for():
    forward = open_forward(tiny_model("qwen2").eval(), 10)
    with pytest.raises(ValueError, match="11 tokens in a sequence of 10"):
        forward.advance(torch.tensor(prompt_of(11)))


@settings(max_examples=60)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=30), st.floats(0.1, 3), st.floats(0.05, 1))
def test_drawn_from_the_nucleus(values, temperature, top_p):
    logits = torch.tensor(values)
    chances = probabilities(logits, temperature, top_p)
    plain = (logits.double() / temperature).softmax(-1)
    assert chances.sum().item() == pytest.approx(1)
    kept = chances > 0
    assert kept[plain.argmax()]
    assert plain[kept].sum().item() >= min(top_p, 1.0) - 1e-9
    # Nothing smaller would do: without its least likely token it falls short.
    assert kept.sum() == 1 or plain[kept].sum() - plain[kept].min() < top_p + 1e-9


def test_the_same_seed_draws_the_same_text():
    model = tiny_model("qwen2").eval()

    def text(seed):
        return list(generate(open_forward(model, 40), prompt_of(20), Sampling(max_tokens=20, temperature=1, seed=seed)))

    assert text(3) == text(3)
    assert text(3) != text(4)


def test_ends_where_it_should():
    model = tiny_model("qwen2").eval()
    greedy = list(generate(open_forward(model, 40), prompt_of(20), Sampling(max_tokens=20)))
    end = greedy[5]
    found = list(generate(open_forward(model, 40), prompt_of(20), Sampling(max_tokens=20), ends={end}))
    assert found == greedy[: greedy.index(end)]


@given(st.text(max_size=60))
def test_text_comes_whole_in_pieces(text):
    tokenizer = _demo()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(stream_text(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", ["naïve 日本", "x 👩🏽", "é"])
def test_text_that_ends_within_a_character_is_that_of_transformers(text):
    library = AutoTokenizer.from_pretrained(asset("demo-model"))
    ids = library(text, add_special_tokens=False)["input_ids"]
    for count in range(1, len(ids) + 1):
        pieces = list(stream_text(_demo(), iter(ids[:count])))
        assert "".join(pieces) == library.decode(ids[:count], clean_up_tokenization_spaces=False)
        assert len(pieces) == count


def _demo():
    if "tokenizer" not in _kept:
        _kept["tokenizer"] = Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))
    return _kept["tokenizer"]


def test_control_characters_never_reach_a_terminal():
    shown = printable("a\tb\n\x1b[31mred\x07\x9b\u202e")
    assert shown == "a\tb\n\\x1b[31mred\\x07\\x9b\\u202e"
    assert np.all([c.isprintable() or c in "\n\t" for c in shown])
