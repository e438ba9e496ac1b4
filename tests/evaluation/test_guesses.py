"""First guesses: what greedy decoding of transformers alone writes behind the same text, name by name."""

from __future__ import annotations

import inspect
import json.decoder
import json.encoder
import json.scanner
import re
import tokenize
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_kinds import byte_fallback, byte_level, unigram
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.assets import asset
from engine.data.store import FileEntry
from engine.data.windows import Windows
from engine.evaluation.guesses import mark_guesses, names_of
from engine.evaluation.held_out import HeldOut
from engine.evaluation.tally import Guesses, tally_losses
from engine.steps.whole_step import WholeSequenceStep
from engine.tokenization.encoder import Encoder, demo_encoder

CONTEXT = 256
ENCODER = demo_encoder()
FOLDER = asset("demo-model", "config.json").parent


def held_out_of(texts):
    documents = ENCODER.encode_documents([(f"f{i}.py", text) for i, text in enumerate(texts)])
    tokens = np.concatenate(documents).astype(np.uint16)
    files = tuple(FileEntry(f"f{i}.py", 0, "Python", i, len(ids)) for i, ids in enumerate(documents))
    return HeldOut(Windows(tokens, CONTEXT), tokens, files, np.cumsum([0, *map(len, documents)]))


def python_names(text):
    """Names and keywords' rest as Python's own tokenizer finds them, by (line, column)."""
    import io
    import keyword

    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            yield token.string


OTHERS = {
    "byte-level": byte_level,
    "legacy spaces": byte_fallback,
    "a space first": partial(byte_fallback, scheme="first"),
    "a space never": partial(byte_fallback, scheme="never"),
    "unigram": unigram,
}


@pytest.mark.parametrize("kind", ["embedded", *OTHERS])
def test_names_are_those_that_python_finds(kind):
    text = inspect.getsource(json.scanner)
    encoder = Encoder(OTHERS[kind]()) if kind in OTHERS else ENCODER
    [ids] = encoder.encode_documents([("a/scanner.py", text)])
    found = list(names_of(ids.tolist(), "Python", encoder))
    texts = [encoder.decode(ids[name.first : name.last + 1].tolist()) for name in found]
    expected = list(python_names(text))
    assert len(found) == len(expected)
    for shown, name in zip(texts, expected, strict=True):
        assert name in shown
        # A word of this kind may hold several names ("re.compile(").
        assert kind == "unigram" or re.fullmatch(r"\W*", shown.replace(name, "", 1))
    first = {}
    for i, name in enumerate(expected):
        first.setdefault(name, i)
    assert [i for i, name in enumerate(found) if name.new] == sorted(first.values())


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["größe", "ключ", "x", "名前", "foo_bar", "𝔘nicode", "naïve1"]), min_size=1, max_size=9)
)
def test_tokens_of_a_name_hold_it(names):
    text = "".join(f"{name} = 'é{name}€'\n" for name in names)
    [ids] = ENCODER.encode_documents([("ä.py", text)])
    found = list(names_of(ids.tolist(), "Python", ENCODER))
    assert [name.new for name in found] == [name not in names[:i] for i, name in enumerate(names)]
    for name, given_name in zip(found, names, strict=True):
        assert given_name in ENCODER.decode(ids[name.first : name.last + 1].tolist())
        assert given_name not in ENCODER.decode(ids[name.first + 1 : name.last + 1].tolist())
        assert given_name not in ENCODER.decode(ids[name.first : name.last].tolist())


def test_none_of_another_language_nor_of_a_rearranged_file():
    [ids] = ENCODER.encode_documents([("a.md", "some words\n")])
    assert not list(names_of(ids.tolist(), None, ENCODER))
    [ids] = ENCODER.encode_middles([("a.py", "first = second\n", (4, 9))])
    assert not list(names_of(ids.tolist(), "Python", ENCODER))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_a_guessed_name_is_what_transformers_writes(model):
    text = inspect.getsource(json.encoder)[2600:4200]
    text = text[text.index("\n") + 1 :]
    held_out = held_out_of([text])
    step = WholeSequenceStep(model, recompute=False)
    tally = tally_losses(step.token_scores, held_out, max_tokens=100_000, progress=lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    hits, new_hits, tokens_right, scored = [], [], 0, 0
    for index in range(len(held_out.windows)):
        places = held_out.windows.places(index)
        ids = torch.as_tensor(held_out.tokens[places].astype(np.int64))
        with torch.no_grad():
            likeliest = model(input_ids=ids[None]).logits[0, :-1].argmax(-1)
        tokens_right += int((likeliest == ids[1:]).sum())
        scored += len(ids) - 1
    for name in names_of(held_out.tokens.tolist(), "Python", ENCODER):
        begin = name.first // CONTEXT * CONTEXT
        if name.first == begin or name.last // CONTEXT != name.first // CONTEXT:
            continue  # the first token of a window is not predicted
        before = torch.as_tensor(held_out.tokens[begin : name.first].astype(np.int64))
        with torch.no_grad():
            written = model.generate(
                before[None], attention_mask=torch.ones(1, len(before)), do_sample=False, max_new_tokens=12
            )[0, len(before) :]
        truth = tokenizer.decode(held_out.tokens[name.first : name.last + 1].tolist())
        rest = tokenizer.decode(written.tolist())
        hits.append(re.match(re.escape(truth) + r"(?![\w$])", rest) is not None)
        if name.new:
            new_hits.append(hits[-1])
    (tokens, names), _ = mark_guesses(tally.guesses, tally.guesses, held_out, ENCODER)
    assert tokens.functions == scored
    assert tokens.rows[0].base == pytest.approx(tokens_right / scored)
    assert names.functions == len(hits) > 100
    assert 0.1 < sum(hits) / len(hits) < 0.9
    assert [row.base for row in names.rows] == pytest.approx([np.mean(hits), np.mean(new_hits)])


def test_intervals_resample_files_and_models_are_told_apart():
    texts = [f"alpha_{i} = beta + gamma\n" * 4 for i in range(8)]
    held_out = held_out_of(texts)
    places = np.arange(1, len(held_out.tokens))
    truth = held_out.tokens[places].astype(np.int64)
    wrong = Guesses(places, (truth + 1) % ENCODER.vocabulary)
    (tokens, names), _ = mark_guesses(wrong, Guesses(places, truth), held_out, ENCODER)
    for row in (*tokens.rows, *names.rows):
        assert (row.base, row.tuned, row.difference) == (0.0, 1.0, 1.0)
        assert (row.difference_interval.low, row.difference_interval.high) == (1.0, 1.0)
    assert names.functions == 8 * 4 * 3
    assert names.rows[1].functions == 8 * 3
    one = held_out_of(texts[:1])
    places = np.arange(1, len(one.tokens))
    (few, _), _ = mark_guesses(*[Guesses(places, one.tokens[places].astype(np.int64))] * 2, one, ENCODER)
    assert few.rows[0].difference_interval is None


def test_a_guess_that_goes_on_with_the_name_is_another_name():
    held_out = held_out_of(["run = 1\n"])
    ids = held_out.tokens.tolist()
    [name] = names_of(ids, "Python", ENCODER)
    places = np.arange(1, len(ids))
    longer = held_out.tokens[places].astype(np.int64)
    for guess, right in (("_", False), ("s", False), ("1", False), (" ", True), ("(", True), (".", True)):
        [[token]] = [ENCODER.tokenizer.encode(guess, add_special_tokens=False).ids]
        longer[name.last] = token  # predicted behind the name
        (_, names), _ = mark_guesses(*[Guesses(places, longer)] * 2, held_out, ENCODER)
        assert names.rows[0].base == right, guess


def excerpts_of(held_out, likeliest):
    places = np.arange(1, len(held_out.tokens))
    truth = held_out.tokens[places].astype(np.int64)
    return mark_guesses(Guesses(places, likeliest(truth)), Guesses(places, truth), held_out, ENCODER)[1]


def test_excerpts_mark_the_names_of_their_lines():
    long = "".join(f"größe_{i} = beta_{i} + gamma  # ключ\n" if i % 2 else f"x{i} = 1\n" for i in range(40))
    texts = [inspect.getsource(json.scanner), long, "few = names\n"]
    held_out = held_out_of(texts)
    found = excerpts_of(held_out, lambda truth: (truth + 1) % ENCODER.vocabulary)
    assert sorted(one.file for one in found) == ["f0.py", "f1.py"]
    for excerpt in found:
        text = texts[int(excerpt.file[1])]
        assert excerpt.text in text
        assert excerpt.text.count("\n") < 12
        begin = text.index(excerpt.text)
        expected = [
            (match.start() - begin, match.group())
            for match in re.finditer(r"(?<![\w'\"])[^\W\d]\w*", text)
            if begin <= match.start() < begin + len(excerpt.text)
        ]
        marked = [(name.start, excerpt.text[name.start : name.stop]) for name in excerpt.names]
        assert set(marked) <= set(expected)
        assert len(marked) >= 12
        assert all(name.tuned and not name.base for name in excerpt.names)


def test_what_is_shown_does_not_depend_on_what_was_guessed():
    held_out = held_out_of([inspect.getsource(module) for module in (json.scanner, json.encoder, json.decoder)])
    draw = np.random.default_rng(0)
    shown = [
        excerpts_of(held_out, likeliest)
        for likeliest in (lambda truth: truth, lambda truth: draw.permutation(truth), lambda truth: 0 * truth)
    ]
    kept = [[(one.file, one.text, [(n.start, n.stop) for n in one.names]) for one in found] for found in shown]
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 3
