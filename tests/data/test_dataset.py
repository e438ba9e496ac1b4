from __future__ import annotations

import base64
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.planted_secrets import FORMATS, fill
from support.repositories import Write, module
from tokenizers import Tokenizer

from engine.config import DataSection
from engine.data.dataset import Dataset, build_dataset
from engine.data.documents import Document, Texts
from engine.errors import EliteError
from engine.tokenization.encoder import demo_encoder

ENCODER = demo_encoder()
Build = Callable[..., Dataset]


@pytest.fixture
def build(tmp_path: Path, demo_tokenizer: Tokenizer) -> Build:
    def build_it(*repositories: Path, context: int = 128, **options: Any) -> Dataset:
        # Files in their own order, which what is read back is compared with. test_fim.py rearranges them.
        data = DataSection(repositories=[str(path) for path in repositories], **{"fim": 0.0, **options})
        return build_dataset(data, tokenizer=demo_tokenizer, context=context, cache=tmp_path / "cache")

    return build_it


def text_of(windows: object) -> str:
    return "".join(ENCODER.decode(window.ids.tolist()) for window in windows)  # type: ignore[attr-defined]


def document(path: str, content: str) -> str:
    return f"<|file_sep|>{path}\n{content}<|endoftext|>"


def test_every_byte_once_in_path_order_on_its_side(write: Write, build: Build) -> None:
    files = {f"p{i % 3}/m{i}.py": module(f"m{i}", 60) for i in range(40)}
    dataset = build(write(files))
    held_out = {name for name in files if document(name, files[name]) in text_of(dataset.held_out)}
    assert len(held_out) == dataset.summary.held_out_files > 0
    train = [name for name in files if name not in held_out]
    assert text_of(dataset.held_out) == "".join(document(name, files[name]) for name in sorted(held_out))
    assert text_of(dataset.train) == "".join(document(name, files[name]) for name in sorted(train))
    assert dataset.train.token_count == dataset.summary.train_tokens
    assert [entry.path for entry in dataset.store.files] == sorted(train) + sorted(held_out)


source = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(source, min_size=2, max_size=6, unique=True),
    context=st.integers(64, 300),
    fraction=st.floats(0.01, 0.49),
)
def test_every_kept_byte_once_for_any_text(
    tmp_path: Path, demo_tokenizer: Tokenizer, contents: list[str], context: int, fraction: float
) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    # A first line keeps files from being empty.
    files = {f"f{i}.md": f"line {i}\n{content}" for i, content in enumerate(contents)}
    for name, content in files.items():
        (root / name).write_bytes(content.encode())
    try:
        dataset = build_dataset(
            DataSection(repositories=[str(root)], held_out_fraction=fraction),
            tokenizer=demo_tokenizer,
            context=context,
            cache=tmp_path / "cache",
        )
    except EliteError:
        # All copies of one another, or hardly any text.
        assume(False)
    kept = {str(file.path): files[str(file.path)] for file in dataset.summary.files}
    assert len(kept) + sum(dataset.summary.skipped.values()) == len(files)
    streams = ENCODER.decode(dataset.store.tokens.tolist())
    assert streams == "".join(document(name, content) for name, content in kept.items())
    for windows, tokens in (
        (dataset.train, dataset.summary.train_tokens),
        (dataset.held_out, dataset.summary.held_out_tokens),
    ):
        order = windows.epoch_order(0, 0)
        assert sum(len(windows[int(index)]) for index in order) in (tokens, tokens - 1)
    boundary = dataset.summary.train_tokens
    if len(dataset.held_out):
        first = np.concatenate([window.ids for window in dataset.held_out])
        assert np.array_equal(first, dataset.store.tokens[boundary : boundary + len(first)])


def test_unchanged_repository_is_not_tokenised_again(write: Write, build: Build) -> None:
    root = write({f"m{i}.py": module(f"m{i}") for i in range(6)})
    first = build(root)
    second = build(root, context=64)
    assert (first.summary.reused, second.summary.reused) == (False, True)
    assert first.summary.store == second.summary.store
    assert np.array_equal(first.store.tokens, second.store.tokens)
    write({"m0.py": module("changed")})
    assert not build(root).summary.reused
    write({"m0.py": module("m0")})
    assert build(root).summary.reused
    (root / "m0.py").rename(root / "n0.py")
    assert not build(root).summary.reused


def test_damaged_store_is_built_again_with_a_note(write: Write, build: Build) -> None:
    root = write({f"m{i}.py": module(f"m{i}") for i in range(6)})
    first = build(root)
    before = first.store.tokens.tolist()
    path = first.summary.store / "tokens.bin"
    path.write_bytes(b"\0" * path.stat().st_size)
    again = build(root)
    assert not again.summary.reused
    assert "damaged" in again.summary.notes[0]
    assert again.store.tokens.tolist() == before


def test_copies_are_left_out(write: Write, build: Build) -> None:
    files = {f"m{i}.py": module(f"m{i}") for i in range(6)}
    dataset = build(write({**files, "copy/m0.py": module("m0"), "late.c": b"int x;\n" * 4000 + b"\0"}))
    assert dataset.summary.skipped == {"duplicate": 1, "binary": 1}
    assert len(dataset.summary.files) == 6


def test_several_repositories_follow_each_other(tmp_path: Path, build: Build) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"m{i}.py").write_text(module(f"{name}_{i}"))
    dataset = build(tmp_path / "two", tmp_path / "one")
    assert {entry.repository for entry in dataset.store.files} == {0, 1}
    assert len(dataset.summary.files) == 8


def test_file_that_changes_while_it_is_read(write: Write, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({f"m{i}.py": module(f"m{i}") for i in range(6)})
    reads = 0

    read_again = Texts.read

    def read_and_write(*arguments: object) -> Document | str:
        nonlocal reads
        reads += 1
        if reads in changes:
            (root / "m3.py").write_text(module(f"version{reads}"))
        return read_again(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Texts, "read", read_and_write)
    changes: range | set[int] = {8}
    dataset = build(root)
    assert "version8" in text_of(dataset.train) + text_of(dataset.held_out)
    changes = range(10**6)
    with pytest.raises(EliteError) as caught:
        build(root)
    assert caught.value.code == "repository-changing"


def test_only_copies_are_too_few(write: Write, build: Build) -> None:
    with pytest.raises(EliteError) as caught:
        build(write({"a.py": module("a"), "b.py": module("a")}))
    assert caught.value.code == "repository-too-small"


def test_what_is_cut_out_does_not_count_as_text(write: Write, build: Build) -> None:
    encoded = base64.b64encode(random.Random(1).randbytes(30_000)).decode()
    files = {"a.py": module("a") * 3 + f'A = "{encoded}"\n', "b.py": module("b") * 20 + f'B = "{encoded[::-1]}"\n'}
    with pytest.raises(EliteError) as caught:
        build(write(files))
    # One file is left, without the 40,000 characters at its end.
    assert caught.value.code == "repository-too-small"
    assert int(caught.value.values["tokens"].removeprefix("about ").replace(",", "")) < len(module("b")) * 20


def test_progress(write: Write, tmp_path: Path, demo_tokenizer: Tokenizer) -> None:
    seen: dict[str, tuple[int, int]] = {}
    build_dataset(
        DataSection(repositories=[str(write({f"m{i}.py": module(f"m{i}") for i in range(6)}))]),
        tokenizer=demo_tokenizer,
        context=64,
        cache=tmp_path / "cache",
        progress=lambda done, total, what: seen.update({what: (done, total)}),
    )
    assert list(seen) == ["files found", "files read", "bytes tokenised"]
    assert all(done == total > 0 for done, total in seen.values())


@pytest.mark.parametrize("package", ["asyncio", "email"])
def test_packages_of_the_standard_library(package: str, stdlib: Path, build: Build) -> None:
    dataset = build(stdlib / package, context=4096, licence_headers="keep")
    summary = dataset.summary
    assert summary.train_tokens > 10 * len(dataset.train)
    assert 0.01 < summary.held_out_tokens / summary.tokens < 0.4
    read = {str(file.path): (file.repository / file.path).read_text() for file in summary.files}
    assert ENCODER.decode(dataset.store.tokens.tolist()) == "".join(document(*item) for item in read.items())


def test_secrets_are_masked_listed_or_skipped_as_asked(write: Write, build: Build) -> None:
    secret, _ = fill(FORMATS["GitHub"], random.Random(1))
    files = {f"m{i}.py": module(f"m{i}") for i in range(6)}
    root = write({**files, "leak.py": f"import os\n\nTOKEN = '{secret}'\n" + module("leak"), ".env": f"T={secret}\n"})
    masked = build(root)
    everything = text_of(masked.train) + text_of(masked.held_out)
    assert secret not in everything
    assert "TOKEN = 'REDACTED'" in everything
    (found,) = masked.summary.secrets
    assert (str(found.file.path), found.line, found.kind, found.hint) == ("leak.py", 3, "GitHub token", "ghp_…")
    assert masked.summary.skipped == {"secrets": 1}
    skipped = build(root, secrets="skip")
    assert skipped.summary.skipped == {"secrets": 2}
    assert len(skipped.summary.secrets) == 1
    kept = build(root, secrets="keep")
    assert secret in text_of(kept.train) + text_of(kept.held_out)
    assert len({dataset.summary.store for dataset in (masked, skipped, kept)}) == 3


def test_near_duplicates_are_left_out_unless_kept(write: Write, build: Build) -> None:
    files = {f"m{i}.py": module(f"m{i}", 90) for i in range(6)}
    root = write({**files, "twin.py": module("m0", 90) + "\n# one more line\n"})
    assert build(root).summary.skipped == {"near-duplicate": 1}
    assert build(root, near_duplicates="keep").summary.skipped == {}


def test_repeated_licence_headers_are_learnt_once(write: Write, build: Build) -> None:
    header = "# Copyright (c) 2020 Somebody Whose Name Is Long\n# Licensed under the Apache License\n\n"
    files = {f"m{i}.py": header + module(f"m{i}", 60) for i in range(6)}
    root = write(files)
    dataset = build(root)
    everything = text_of(dataset.train) + text_of(dataset.held_out)
    assert everything.count("Whose Name") == 1
    assert dataset.summary.licence_headers == 5
    assert all(content.removeprefix(header) in everything for content in files.values())
    kept = build(root, licence_headers="keep")
    assert (text_of(kept.train) + text_of(kept.held_out)).count("Whose Name") == 6


def test_kinds_of_files_can_be_asked_for(write: Write, build: Build) -> None:
    files = {f"m{i}.py": module(f"m{i}") for i in range(6)}
    odd = {"vendor/v.py": module("v"), "a_pb2.py": module("a"), "copy.py": files["m0.py"]}
    root = write({**files, **odd})
    plain = build(root).summary
    assert plain.skipped == {"vendored": 1, "generated": 1, "duplicate": 1}
    assert plain.examples["vendored"] == (f"{root}/vendor/v.py",)
    everything = build(root, include=["vendored", "generated", "duplicate"]).summary
    assert everything.skipped == {}
    assert len(everything.files) == 9


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.45])
def test_copies_and_near_copies_that_are_kept_stay_on_one_side(write: Write, build: Build, fraction: float) -> None:
    files = {}
    for i in range(12):
        text = module(f"m{i}", 90)
        files |= {f"m{i}.py": text, f"copy/c{i}.py": text, f"near/n{i}.py": text + f"# {i}\n"}
    options = {"near_duplicates": "keep", "include": ["duplicate"], "held_out_fraction": fraction}
    dataset = build(write(files), **options)
    assert len(dataset.summary.files) == 36
    train, held_out = text_of(dataset.train), text_of(dataset.held_out)
    for i in range(12):
        assert (train.count(f"def m{i}_0(x)"), held_out.count(f"def m{i}_0(x)")) in ((3, 0), (0, 3))
    assert {twin.side for twin in dataset.summary.twins} == {"training", "held out"}


@pytest.mark.parametrize("documents", ["repository", "package", "file"])
def test_what_is_one_document(write: Write, build: Build, documents: str) -> None:
    files = {f"{top}/m{i}.py": module(f"{top}{i}", 30) for top in ("one", "two") for i in range(8)}
    root = write({**files, "one/pyproject.toml": "[project]\n", "two/package.json": "{}\n"})
    dataset = build(root, context=64, documents=documents)
    held_out = dataset.summary.held_out_files
    count = len({file.document for file in dataset.store.files[: len(dataset.store.files) - held_out]})
    assert count == {"repository": 1, "package": 2, "file": 18 - held_out}[documents]
    paths = [file.path for file in dataset.store.files]
    assert sorted(paths) == sorted(str(file.path) for file in dataset.summary.files)
    windows = list(dataset.train.with_context(4096))
    assert len(windows[0].starts) == count
    assert sum(len(window) for window in windows) == dataset.summary.train_tokens
    alone = build(root, context=4096, documents=documents, packing=False)
    assert alone.summary.reused
    assert len(alone.train) == count


def test_one_store_for_windows_of_any_context(write: Write, build: Build) -> None:
    dataset = build(write({f"m{i}.py": module(f"m{i}", 60) for i in range(20)}), documents="file")
    for context in (64, 200, 1000, 100_000):
        windows = dataset.train.with_context(context)
        assert max(len(window) for window in windows) <= context
        assert windows.token_count == dataset.summary.train_tokens
        assert sorted(np.concatenate([w.ids for w in windows])) == sorted(dataset.store.tokens[: windows.token_count])


def test_files_of_crlf_line_ends_are_read_as_git_stores_them(write: Write, build: Build) -> None:
    files = {f"m{i}.py": module(f"m{i}") for i in range(6)}
    root = write(files)
    plain = build(root)
    write({name: "\ufeff" * (name == "m1.py") + text.replace("\n", "\r\n") for name, text in files.items()})
    dataset = build(root)
    assert dataset.summary.crlf_files == 6
    assert plain.summary.crlf_files == 0
    assert text_of(dataset.train) == text_of(plain.train)
    assert text_of(dataset.held_out) == text_of(plain.held_out)


def test_carriage_returns_of_some_lines_stay(write: Write, build: Build) -> None:
    files = {f"m{i}.py": module(f"m{i}") for i in range(6)}
    mixed = {
        "one.py": module("one").replace("\n", "\r\n", 1),
        "last.py": module("last").replace("\n", "\r\n") + "last = 1\n",
        "lone.py": module("lone").replace("\n", "\r\n") + "lone = '\r'\r\n",
        "old.py": module("old").replace("\n", "\r"),
    }
    dataset = build(write({**files, **mixed}))
    everything = text_of(dataset.train) + text_of(dataset.held_out)
    assert dataset.summary.crlf_files == 0
    assert all(text in everything for text in mixed.values())
