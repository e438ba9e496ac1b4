from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.repositories import Write, module
from tokenizers import AddedToken, Tokenizer

from engine.config import DataSection
from engine.data.dataset import Dataset, build_dataset
from engine.data.fim import cut_points
from engine.errors import EliteError
from engine.tokenization.encoder import Encoder, demo_encoder, find_tokens

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


def build(root: Path, tmp_path: Path, tokenizer: Tokenizer, **options: object) -> Dataset:
    data = DataSection(repositories=[str(root)], **options)
    return build_dataset(data, tokenizer=tokenizer, context=4096, cache=tmp_path / "cache")


def test_training_files_are_rearranged_and_held_out_ones_are_not(
    write: Write, tmp_path: Path, demo_tokenizer: Tokenizer
) -> None:
    files = {f"m{i}.py": module(f"m{i}", 60) for i in range(40)}
    root = write(files)
    dataset = build(root, tmp_path, demo_tokenizer, fim=0.5, documents="file")
    plain = build(root, tmp_path, demo_tokenizer, documents="file")
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


def test_a_model_without_the_tokens_is_refused(write: Write, tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    without = Tokenizer.from_str(demo_tokenizer.to_str().replace("<|fim_", "<|other_"))
    assert Encoder(without).fim is None
    root = write({f"m{i}.py": module(f"m{i}") for i in range(6)})
    with pytest.raises(EliteError) as caught:
        build(root, tmp_path, without, fim=0.5)
    assert caught.value.code == "fim-unavailable"
    with pytest.raises(ValueError, match="no tokens"):
        Encoder(without).encode_middles([("a", "b", (0, 1))])
    without.add_special_tokens([AddedToken(f"<fim_{part}>") for part in ("prefix", "suffix", "middle")])
    assert build(root, tmp_path, without, fim=0.5).summary.tokens
