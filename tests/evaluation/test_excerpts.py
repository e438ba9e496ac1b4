"""Places of names in excerpts, with tokenizers of every kind, against Python's own tokenizer over the same lines."""

from __future__ import annotations

import io
import keyword
import tokenize
from functools import partial

import numpy as np
import pytest
from support.tokenizer_kinds import KINDS, TEXTS, added, unigram, word_piece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.data.store import FileEntry
from engine.data.windows import Windows
from engine.evaluation.guesses import mark_guesses
from engine.evaluation.held_out import HeldOut
from engine.evaluation.result import Excerpt
from engine.evaluation.tally import Guesses
from engine.tokenization.encoder import Encoder

WIDE = "".join(
    f"größe_{i} = beta_{i} + Ключ{i % 3}  # 大きさ {i}\n" if i % 2 else f"\tx{i} = '\U0001f469'\n" for i in range(40)
)
SOURCES = {
    "plain.py": TEXTS[0],
    "wide.py": f"if 名前:\n{WIDE.replace('größe', '    größe').replace(chr(9), '    ')}",
    "returns.py": TEXTS[1].replace("\n", "\r\n"),
}
SPLITS = {
    # Names and the sign before them in one piece, as GPT-4 splits; digits by threes.
    "sign before words": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Lower and upper case apart, as o200k splits: `camelCase` is two pieces.
    "by case": r"[^\r\n\p{L}\p{N}]?\p{Lu}*\p{Ll}+|[^\r\n\p{L}\p{N}]?\p{Lu}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
    # Whole lines: a token may hold several names.
    "lines": r"[^\n]*\n?",
}


def split_byte_level(pattern: str) -> Tokenizer:
    """Byte-level BPE whose words are those of a pattern, with tokens long enough to reach past names."""
    made = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    made.train_from_iterator([*TEXTS, WIDE], trainer)
    return made


MADE = {**KINDS, **{name: partial(split_byte_level, pattern) for name, pattern in SPLITS.items()}}


def held_out_of(encoder: Encoder, sources: dict[str, str]) -> HeldOut:
    documents = encoder.encode_documents(list(sources.items()))
    tokens = np.concatenate(documents)
    numbered = enumerate(zip(sources, documents, strict=True))
    files = tuple(FileEntry(path, 0, "Python", i, len(ids)) for i, (path, ids) in numbered)
    return HeldOut(Windows(tokens, 256), tokens, files, np.cumsum([0, *map(len, documents)]))


def excerpts_of(encoder: Encoder, sources: dict[str, str]) -> tuple[Excerpt, ...]:
    held_out = held_out_of(encoder, sources)
    places = np.arange(1, len(held_out.tokens))
    truth = held_out.tokens[places].astype(np.int64)
    return mark_guesses(Guesses(places, truth + 1), Guesses(places, truth), held_out, encoder)[1]


def places_of(text: str) -> dict[int, set[tuple[int, str]]]:
    """Returns the column and text of each name, by its line from 1."""
    found: dict[int, set[tuple[int, str]]] = {}
    for each in tokenize.generate_tokens(io.StringIO(text, newline="").readline):
        if each.type == tokenize.NAME and not keyword.iskeyword(each.string):
            found.setdefault(each.start[0], set()).add((each.start[1], each.string))
    return found


@pytest.mark.parametrize("kind", MADE)
def test_excerpts_mark_every_name_of_their_lines_and_nothing_else(kind):
    # The unigram vocabulary has no character that is missing in the texts that it was made from.
    sources = {"plain.py": SOURCES["plain.py"]} if kind == "unigram" else SOURCES
    found = excerpts_of(Encoder(MADE[kind]()), sources)
    assert {one.file for one in found} == set(sources)
    for excerpt in found:
        source = sources[excerpt.file]
        assert source.count(excerpt.text) == 1
        before = source[: source.index(excerpt.text)]
        assert before == "" or before.endswith("\n")
        names, expected, begin = places_of(source), [], 0
        for number, line in enumerate(excerpt.text.split("\n"), before.count("\n") + 1):
            expected += sorted((begin + column, name) for column, name in names.get(number, ()))
            begin += len(line) + 1
        marked = [(name.start, excerpt.text[name.start : name.stop]) for name in excerpt.names]
        assert marked == expected
        assert len(marked) >= 12
        assert all(name.tuned and not name.base for name in excerpt.names)


def test_a_tokenizer_that_loses_characters_marks_names_of_the_text_that_it_restores():
    encoder = Encoder(unigram())
    found = excerpts_of(encoder, SOURCES)
    assert found
    for excerpt in found:
        [ids] = encoder.encode_documents([(excerpt.file, SOURCES[excerpt.file])])
        restored = encoder.text_of(ids.tolist())
        assert ("<unk>" in restored) == (excerpt.file != "plain.py")
        assert excerpt.text in restored
        assert all(excerpt.text[name.start : name.stop].isidentifier() for name in excerpt.names)
        ends = [0, *(name.stop for name in excerpt.names)]
        assert all(end <= name.start for end, name in zip(ends, excerpt.names, strict=False))


def test_a_tokenizer_that_loses_line_ends_marks_nothing():
    """The path line is a comment, and without line ends all of the file belongs to it."""
    encoder = Encoder(word_piece([added("</s>", special=True)]))
    assert excerpts_of(encoder, SOURCES) == ()
