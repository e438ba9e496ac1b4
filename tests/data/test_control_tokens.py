"""No text becomes a control token, in any kind of tokenizer, and every text comes back."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_kinds import KINDS, added, byte_fallback, byte_level, unigram, word_piece
from tokenizers import Tokenizer

from engine.tokenization.encoder import Encoder
from engine.tokenization.plain_text import is_plain_text

TEXT = "def f(x):\n    return {'a': x ** 2}  # <b> naive\n\n\tif  x :\n"


@functools.cache
def made(kind: str) -> tuple[Tokenizer, Encoder, dict[int, str]]:
    tokenizer = KINDS[kind]()
    if tokenizer.token_to_id("</s>") is None and tokenizer.token_to_id("<|endoftext|>") is None:
        raise AssertionError(kind)
    return (
        tokenizer,
        Encoder(tokenizer),
        {n: token.content for n, token in tokenizer.get_added_tokens_decoder().items()},
    )


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_text_becomes_an_added_token(kind: str, data: st.DataObject) -> None:
    _, encoder, names = made(kind)
    letters = st.text(st.sampled_from("ab<>|_ \n(){}=0"), max_size=8)
    pieces = data.draw(st.lists(st.one_of(st.sampled_from(sorted(names.values())), letters), max_size=12))
    text = "".join(pieces)
    [ids] = encoder.encode_documents([("a<|fim_prefix|>.py", text)])
    inner = ids[len(encoder.first) : -1].tolist()
    present = {names[token] for token in inner if token in names}
    # A character that the vocabulary lacks is unknown to Unigram; nothing else may come of text.
    assert present <= ({"<unk>"} if kind == "unigram" else set())
    if not present:
        # SentencePiece writes spaces so, and cannot tell.
        text = text if kind.startswith("byte") else text.replace("▁", " ")
        assert encoder.text_of(ids.tolist()) == text
        assert encoder.decode(inner).lstrip(" ") == f"# a<|fim_prefix|>.py\n{text}"
    prompt = encoder.encode_prompt(text)[len(encoder.first) :]
    assert not {names[token] for token in prompt if token in names} - {"<unk>", names[encoder.end]}


@pytest.mark.parametrize("kind", KINDS)
def test_other_text_has_the_ids_of_the_tokenizer_itself(kind: str) -> None:
    tokenizer, encoder, _ = made(kind)
    [ids] = encoder.encode_documents([("a.py", TEXT)])
    assert ids.tolist() == [*tokenizer.encode(f"# a.py\n{TEXT}").ids, encoder.end]
    assert encoder.encode_prompt(TEXT) == tokenizer.encode(TEXT).ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["x = 1\n", "  two\n", " one", "\n", "a <s> b"])
def test_parts_for_filling_in_come_back_exactly(kind: str, text: str) -> None:
    names = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens([added(name, special=True) for name in names])
    encoder = Encoder(tokenizer)
    if encoder.fim is None:
        pytest.fail("no tokens for it")
    before, after = "def f():\n    pass\n", "    return\n\n  "
    document = before + text + after
    [ids] = encoder.encode_middles([("a.py", document, (len(before), len(before) + len(text)))])
    # By the library's own decoder, all at once, as a model's output is read.
    shown = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    found = shown.partition("\n")[2]
    marks = [tokenizer.id_to_token(token) for token in (encoder.fim.prefix, encoder.fim.suffix, encoder.fim.middle)]
    marks = [mark.replace("▁", " ") for mark in marks]
    end = tokenizer.id_to_token(encoder.end)
    assert found == f"{marks[0]}{before}{marks[1]}{after}{marks[2]}{text}{end}"
    assert encoder.text_of(ids.tolist()) == document


@pytest.mark.parametrize("scheme", ["legacy", "always", "first", "never"])
def test_a_long_text_gets_no_space_where_it_is_cut(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.tokenization.pieces._PIECE", 20)
    encoder = Encoder(byte_fallback(scheme=scheme))
    text = "x = 1\n  y = 22\n" * 20
    [ids] = encoder.encode_documents([("a.py", text)])
    assert encoder.text_of(ids.tolist()) == text


def test_words_of_the_vocabulary_itself_are_text_too() -> None:
    """Unigram, and BPE that takes whole words, reach control tokens without the added vocabulary."""
    for tokenizer in (unigram(), byte_level(ignore_merges=True), word_piece([added("</s>", special=True)])):
        encoder = Encoder(tokenizer)
        control = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        for name in sorted(control - {"<unk>", "[UNK]"}):
            token = tokenizer.token_to_id(name)
            assert token not in encoder.encode_prompt(f"a {name} b{name}")[len(encoder.first) :]


@pytest.mark.parametrize(
    ("content", "special", "expected"),
    [
        ("    ", False, True),  # CodeGen, Phi
        ("\n\n", False, True),  # Gemma
        ("▁▁▁", False, True),
        ("  ", True, True),
        ("MyClass", False, True),
        ("two words", False, True),
        ("<h1>", False, True),  # Gemma
        ("</table>", False, True),
        ("endoftext", True, False),
        ("<s>", True, False),
        ("<|fim_prefix|>", False, False),  # Qwen2.5-Coder
        ("<tool_call>", False, False),
        ("</think>", False, False),
        ("<reponame>", False, False),  # StarCoder
        ("▁<PRE>", False, False),  # CodeLlama
        ("<｜fim▁begin｜>", False, False),  # DeepSeek-Coder
        ("[INST]", False, False),
        ("|||EMAIL_ADDRESS|||", False, False),
        ("<unused7>", False, False),
        ("", False, False),
    ],
)
def test_which_added_tokens_are_text(content: str, special: bool, expected: bool) -> None:
    assert is_plain_text(content, special=special) is expected


def test_runs_of_spaces_stay_tokens() -> None:
    """CodeGen and Phi read indentation by added tokens; the model knows no other."""
    tokenizer = byte_level([added("    "), added("\t\t")])
    run = tokenizer.token_to_id("    ")
    encoder = Encoder(tokenizer)
    [ids] = encoder.encode_documents([("a.py", "if x:\n    y\n")])
    assert run in ids.tolist()
    assert ids.tolist()[:-1] == tokenizer.encode("# a.py\nif x:\n    y\n").ids


def test_the_end_token_is_control_whatever_its_name() -> None:
    stored = json.loads(byte_level([added("endoftext")]).to_str())
    tokenizer = Tokenizer.from_str(json.dumps(stored))

    class Named:
        backend_tokenizer = tokenizer
        eos_token_id = tokenizer.token_to_id("endoftext")

    encoder = Encoder(Named())
    [ids] = encoder.encode_documents([("a.py", "the endoftext token")])
    assert ids.tolist().count(encoder.end) == 1
