from __future__ import annotations

import ast
import hashlib
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.repositories import Write, module
from support.tokenizer_kinds import KINDS
from tokenizers import AddedToken, Tokenizer

from engine.config import DataSection
from engine.data.dataset import Dataset, build_dataset
from engine.data.fim import cut_points, share_in_words
from engine.data.report import FimRow, describe
from engine.data.repositories import estimate_data_tokens
from engine.errors import EliteError
from engine.evaluation.held_out import training_texts
from engine.tokenization.encoder import Encoder, demo_encoder
from engine.tokenization.fim_tokens import find_tokens, has_tokens

ENCODER = demo_encoder()


@pytest.mark.parametrize(
    "names",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ],
)
def test_the_models_own_tokens(names: tuple[str, str, str]) -> None:
    known = {name: number for number, name in enumerate(names, start=7)}
    tokens = find_tokens(known.get)
    assert tokens is not None
    assert (tokens.prefix, tokens.suffix, tokens.middle) == (7, 8, 9)
    assert find_tokens({names[0]: 1}.get) is None


@given(text=st.text(min_size=1, max_size=300), data=st.data())
def test_the_middle_moves_and_nothing_is_lost(text: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    (ids,) = ENCODER.encode_middles([("a.py", text, (begin, end))])
    assert ENCODER.decode(ids.tolist()) == (
        f"<|file_sep|>a.py\n<|fim_prefix|>{text[:begin]}<|fim_suffix|>{text[end:]}"
        f"<|fim_middle|>{text[begin:end]}<|endoftext|>"
    )
    assert ENCODER.text_of(ids.tolist()) == text


@given(st.text(max_size=400), st.text(max_size=20), st.binary(max_size=8), st.floats(0, 1))
def test_cuts_follow_from_the_file_alone(text: str, name: str, digest: bytes, rate: float) -> None:
    found = cut_points(text, name, digest, rate)
    assert found == cut_points(text, name, digest, rate)
    if found is not None:
        assert 0 <= found[0] <= found[1] <= len(text)
        assert cut_points(text, name, digest, 1.0) == found
    assert cut_points(text, name, digest, 0.0) is None
    assert (cut_points(text, name, digest, 1.0) is None) == (len(text) < 100)


def test_rows_of_a_data_set_are_rearranged_where_they_name_a_file_of_code(tmp_path: Path) -> None:
    code = [{"path": f"m{i}.py", "text": module(f"m{i}")} for i in range(20)]
    prose = [{"text": f"It was a dark night, number {i}. " * 9} for i in range(20)]
    texts = [{"path": f"notes{i}.unknown", "text": f"Another night, number {i}. " * 9} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*code, *prose, *texts]))
    data = DataSection(datasets=[str(path)], fim=1.0, near_duplicates="keep", held_out_fraction=0.2)
    tokenizer = Tokenizer.from_str(ENCODER._tokenizer.to_str())
    dataset = build_dataset(data, tokenizer=tokenizer, context=512, cache=tmp_path / "cache")
    store, mark = dataset.store, tokenizer.token_to_id("<|fim_prefix|>")
    first = len(store.files) - dataset.summary.held_out_files
    for number, (start, stop) in enumerate(zip(store.offsets(), store.offsets()[1:], strict=False)):
        moved = mark in store.tokens[start:stop].tolist()
        assert moved == (store.files[number].language == "Python" and number < first)


def test_about_the_share_is_chosen() -> None:
    chosen = sum(cut_points("x" * 200, f"m{i}.py", b"", 0.3) is not None for i in range(2000))
    assert 500 < chosen < 700


def suites(text: str) -> set[tuple[int, int]]:
    """First and last line of what stands below each def, class, if, for, ... by `ast`; docstrings are part of it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        for name in ("body", "orelse", "finalbody"):
            suite = getattr(node, name, None)
            if isinstance(suite, list) and suite and not isinstance(node, ast.Module):
                decorated = getattr(suite[0], "decorator_list", ())
                found.add((min(one.lineno for one in (suite[0], *decorated)), suite[-1].end_lineno or 0))
    return found


def test_middles_are_what_an_editor_is_asked_for(stdlib: Path) -> None:
    """Two random places would leave a third of a file between them, and no suite."""
    lengths, whole_lines, whole_suites = [], 0, 0
    for path in sorted(stdlib.glob("*.py")):
        text = path.read_text("utf-8", "replace")
        for number in range(4):
            cut = cut_points(text, path.name, bytes([number]), 1.0)
            if cut is None:
                continue
            begin, end = cut
            lengths.append(end - begin)
            before, after = text[:begin].rpartition("\n")[2], text[end:].partition("\n")[0]
            if before.strip() or after.strip():
                continue
            whole_lines += 1
            first, last = text.count("\n", 0, begin) + 1, text.count("\n", 0, end) + 1
            whole_suites += (first, last) in suites(text)
    assert len(lengths) > 150
    assert 0.6 < whole_lines / len(lengths) < 0.85
    assert whole_suites / len(lengths) > 0.15
    assert sum(length < 100 for length in lengths) / len(lengths) > 0.25
    assert max(lengths) < 2_300


@pytest.mark.parametrize(
    "text", ["x" * 500, "\n" * 500, " \n\t" * 200, "\r\n" * 99, "a:\r\n  b\r\n" * 60, "  a\n" * 99]
)
def test_texts_of_one_kind_of_line_are_cut(text: str) -> None:
    for number in range(50):
        cut = cut_points(text, "m.py", bytes([number]), 1.0)
        assert cut is not None
        assert 0 <= cut[0] <= cut[1] <= len(text)


def build(root: Path, tmp_path: Path, tokenizer: Tokenizer, **options: object) -> Dataset:
    data = DataSection(repositories=[str(root)], **options)
    return build_dataset(data, tokenizer=tokenizer, context=4096, cache=tmp_path / "cache")


def test_training_files_are_rearranged_and_held_out_ones_are_not(
    write: Write, tmp_path: Path, demo_tokenizer: Tokenizer
) -> None:
    files = {f"m{i}.py": module(f"m{i}", 60) for i in range(40)}
    root = write(files)
    dataset = build(root, tmp_path, demo_tokenizer, fim=0.5, documents="file")
    plain = build(root, tmp_path, demo_tokenizer, fim=0.0, documents="file")
    assert plain.summary.store != dataset.summary.store
    held_out = [ENCODER.decode(window.ids.tolist()) for window in dataset.held_out]
    assert held_out == [ENCODER.decode(window.ids.tolist()) for window in plain.held_out]
    offsets = dataset.store.offsets()
    rearranged = 0
    for index, file in enumerate(dataset.store.files[: -dataset.summary.held_out_files]):
        text = ENCODER.decode(dataset.store.tokens[offsets[index] : offsets[index + 1]].tolist())
        head, prefix, rest = text.partition("<|fim_prefix|>")
        if prefix:
            rearranged += 1
            before, _, rest = rest.partition("<|fim_suffix|>")
            after, _, middle = rest.partition("<|fim_middle|>")
            text = head + before + middle.removesuffix("<|endoftext|>") + after + "<|endoftext|>"
        assert text == f"<|file_sep|>{file.path}\n{files[file.path]}<|endoftext|>"
    assert 8 < rearranged < 32


def lacking(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer without tokens for fill-in-the-middle."""
    without = Tokenizer.from_str(tokenizer.to_str().replace("<|fim_", "<|other_"))
    assert Encoder(without).fim is None
    return without


def middles(dataset: Dataset, tokenizer: Tokenizer) -> int:
    return int((dataset.store.tokens == tokenizer.token_to_id("<|fim_middle|>")).sum())


def test_half_of_the_files_where_nothing_is_set(write: Write, tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    root = write({f"m{i}.py": module(f"m{i}", 60) for i in range(60)})
    unset = build(root, tmp_path, demo_tokenizer)
    train = len(unset.summary.files) - unset.summary.held_out_files
    assert (unset.summary.fim, unset.summary.fim_files) == (0.5, train)
    assert train / 4 < middles(unset, demo_tokenizer) < 3 * train / 4
    # The store of the share that was chosen, whoever chose it.
    named = build(root, tmp_path, demo_tokenizer, fim=0.5)
    assert named.summary.reused
    assert named.summary.store == unset.summary.store
    plain = build(root, tmp_path, demo_tokenizer, fim=0.0)
    assert (plain.summary.fim, middles(plain, demo_tokenizer)) == (0.0, 0)
    assert plain.summary.store != unset.summary.store


def test_none_of_the_files_without_the_tokens(write: Write, tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    root, without = write({f"m{i}.py": module(f"m{i}", 60) for i in range(20)}), lacking(demo_tokenizer)
    named = build(root, tmp_path, without, fim=0.0)
    unset = build(root, tmp_path, without)
    assert unset.summary.fim == 0.0
    assert unset.summary.reused
    assert unset.summary.store == named.summary.store
    assert unset.summary.notes == ()
    texts = [ENCODER.text_of(unset.store.tokens[a:b].tolist()) for a, b in pairwise(unset.store.offsets())]
    assert texts == [(root / file.path).read_text() for file in unset.store.files]


def test_the_key_of_a_store_is_that_of_earlier_versions(
    write: Write, tmp_path: Path, demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the share as a number, as when 0.0 was the default: `null` would be another store."""
    digested: list[bytes] = []
    made = hashlib.sha256

    class Recorder:
        def __init__(self) -> None:
            self.inner = made()

        def update(self, data: bytes) -> None:
            digested.append(data)
            self.inner.update(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    monkeypatch.setattr("engine.data.dataset.hashlib.sha256", lambda *data: made(*data) if data else Recorder())
    root = write({f"m{i}.py": module(f"m{i}") for i in range(6)})
    for tokenizer, share in ((demo_tokenizer, 0.5), (lacking(demo_tokenizer), 0.0)):
        digested.clear()
        build(root, tmp_path, tokenizer)
        [options] = [json.loads(data)[3] for data in digested if data.startswith(b"[") and b'"mask"' in data]
        assert options == [False, 1_000_000, "mask", "skip", "once", share, []]


def test_conversations_are_never_rearranged(tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} squared? {'Show the steps. ' * 20}"},
                {"role": "assistant", "content": f"It is {i * i}. " * 20},
            ]
        }
        for i in range(30)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for share in (None, 0.0, 1.0):
        data = DataSection(datasets=[str(path)], chat_template="plain", fim=share, near_duplicates="keep")
        dataset = build_dataset(data, tokenizer=demo_tokenizer, context=512, cache=tmp_path / f"{share}")
        assert dataset.store.learnt is not None
        end = len(dataset.store.tokens)
        found[share] = dataset.store.tokens.tolist(), dataset.store.learnt.of(0, end)
        assert dataset.summary.fim_files == 0
    assert found[None][0] == found[0.0][0] == found[1.0][0]
    assert len(found[None][0]) > 1000


def test_the_text_of_training_files_is_in_its_own_order(
    write: Write, tmp_path: Path, demo_tokenizer: Tokenizer
) -> None:
    """What is shown to the base model in a prompt, say."""
    root = write({f"m{i}.py": module(f"m{i}", 60) for i in range(20)})
    dataset = build(root, tmp_path, demo_tokenizer, fim=1.0)
    assert middles(dataset, demo_tokenizer) > 10
    texts = {one.path: one.text for one in training_texts(dataset, ENCODER)}
    assert texts == {path: (root / path).read_text() for path in texts}


def test_it_is_said_what_was_chosen(write: Write, tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    root = write({f"m{i}.py": module(f"m{i}", 60) for i in range(20)})
    dataset = build(root, tmp_path, demo_tokenizer)
    train = len(dataset.summary.files) - dataset.summary.held_out_files
    assert describe(dataset).fim == FimRow(share=0.5, files=train)
    assert describe(build(root, tmp_path, lacking(demo_tokenizer))).fim == FimRow(share=0.0, files=train)
    words = f"fill-in-the-middle in 50% of {train} training files, as far as they have 100 to 12,000 characters"
    assert share_in_words(0.5, train) == words
    assert share_in_words(0.0, train) is share_in_words(0.5, 0) is None


def test_the_planners_tokens_are_alike_whatever_the_share(write: Write) -> None:
    root = str(write({f"m{i}.py": module(f"m{i}", 60) for i in range(20)}))
    estimates = {estimate_data_tokens(DataSection(repositories=[root], fim=share)) for share in (None, 0.0, 0.5, 1.0)}
    assert len(estimates) == 1


def test_a_tokenizer_file_tells_whether_it_has_the_tokens(tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    """As the loaded tokenizer does, of every kind."""
    for name, tokenizer in [("demo", demo_tokenizer), *((kind, make()) for kind, make in KINDS.items())]:
        file = tmp_path / f"{name}.json"
        text = tokenizer.to_str()
        for stored in (text, text.replace("fim_middle", "other").replace("<MID>", "<OTHER>")):
            file.write_text(stored)
            assert has_tokens(file) is (find_tokens(Tokenizer.from_file(str(file)).token_to_id) is not None)
    file.write_text("[]")
    assert has_tokens(file) is None
    assert has_tokens(tmp_path / "none.json") is None


def test_a_model_without_the_tokens_is_refused(write: Write, tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    without = lacking(demo_tokenizer)
    root = write({f"m{i}.py": module(f"m{i}") for i in range(6)})
    with pytest.raises(EliteError) as caught:
        build(root, tmp_path, without, fim=0.5)
    assert caught.value.code == "fim-unavailable"
    with pytest.raises(ValueError, match="no tokens"):
        Encoder(without).encode_middles([("a", "b", (0, 1))])
    without.add_special_tokens([AddedToken(f"<fim_{part}>") for part in ("prefix", "suffix", "middle")])
    assert build(root, tmp_path, without, fim=0.5).summary.tokens
