"""From repositories to windows of tokens: collect, read, split, tokenise, store."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import errors
from engine.data.collect import Collection, SourceFile, collect, describe_skipped, estimate_tokens
from engine.data.documents import path_line, read_document
from engine.data.encoder import Encoder
from engine.data.near_duplicates import REVISION as NEAR_DUPLICATES_REVISION
from engine.data.reading import FoundSecret, Progress, Reading, read
from engine.data.safe_files import Folder
from engine.data.secrets import REVISION as SECRETS_REVISION
from engine.data.secrets import mask
from engine.data.store import (
    FORMAT,
    StoreBuilder,
    StoreDamagedError,
    TokenStore,
    locked,
    open_store,
    remove_store,
    token_type,
)
from engine.data.windows import Windows

if TYPE_CHECKING:
    from engine.config import DataSection

_BATCH_BYTES = 4 << 20
"Text encoded at once: enough to keep all cores busy, little enough to hold memory down."
_ATTEMPTS = 3
"Times that a repository may change under the reading before it is given up."


@dataclass(frozen=True)
class DatasetSummary:
    """What became of the repositories."""

    collection: Collection
    files: tuple[SourceFile, ...]
    "In the order of the store: training files, then held-out ones."
    held_out_files: int
    skipped: Mapping[str, int]
    "Reason → files, of collecting and of reading."
    secrets: tuple[FoundSecret, ...]
    "Found and kept out, by file and line."
    source_bytes: int
    train_tokens: int
    held_out_tokens: int
    store: Path
    reused: bool
    "Whether nothing had to be tokenised."
    seconds: float
    notes: tuple[str, ...] = ()
    "Sentences that a person should see."

    @property
    def tokens(self) -> int:
        """Training and held-out tokens together."""
        return self.train_tokens + self.held_out_tokens


@dataclass(frozen=True)
class Dataset:
    """Training and held-out windows over one store."""

    train: Windows
    held_out: Windows
    summary: DatasetSummary
    store: TokenStore


class _ChangedError(Exception):
    """A file is no longer what it was when the store's key was made."""


def build_dataset(
    data: DataSection, *, tokenizer: Any, context: int, cache: Path, progress: Progress | None = None
) -> Dataset:
    """Windows of `context` tokens over the repositories' files; reuses the store of an unchanged repository.

    Args:
        data: Repositories and what to leave out.
        tokenizer: A tokenizers.Tokenizer, or a fast tokenizer of transformers.
        context: Tokens a window.
        cache: Folder that keeps stores.
        progress: Told how far it is, a few times a second at most.

    Raises:
        EliteError: REPOSITORY_* for unusable repositories, OUTPUT_UNWRITABLE for the cache.
        ValueError: the tokenizer is not a fast one.
    """
    report = progress or (lambda _done, _total, _what: None)
    started = time.monotonic()
    encoder = Encoder(tokenizer)
    for _attempt in range(_ATTEMPTS):
        collection = collect(
            [Path(repository) for repository in data.repositories],
            max_file_bytes=data.max_file_bytes,
            progress=lambda done, total: report(done, total, "files found"),
        )
        reading = read(collection, data, report)
        if len(reading.files) < 2:
            raise _too_little(data, collection, reading)
        key = _key(reading, data, encoder)
        try:
            store, reused, notes = _open_or_build(cache, key, reading, data, encoder, report)
        except _ChangedError:
            continue
        return _as_dataset(store, reading, collection, context, reused, notes, time.monotonic() - started)
    raise errors.REPOSITORY_CHANGING(path=", ".join(data.repositories))


def _too_little(data: DataSection, collection: Collection, reading: Reading) -> errors.EliteError:
    path = ", ".join(data.repositories)
    if reading.files:
        tokens = f"about {estimate_tokens(collection)}"
        return errors.REPOSITORY_TOO_SMALL(path=path, tokens=tokens, files=len(reading.files))
    skipped = Counter(collection.skipped) + reading.skipped
    return errors.REPOSITORY_NO_SOURCE(path=path, skipped=describe_skipped(dict(skipped.most_common())))


def _key(reading: Reading, data: DataSection, encoder: Encoder) -> str:
    """Names the store by everything that determines its content."""
    digest = hashlib.sha256()
    options = [data.max_file_bytes, data.secrets, SECRETS_REVISION, data.near_duplicates, NEAR_DUPLICATES_REVISION]
    digest.update(json.dumps([FORMAT, encoder.fingerprint, reading.held_out, options]).encode())
    for file, content in zip(reading.files, reading.digests, strict=True):
        digest.update(json.dumps([path_line(file), file.size, content.hex()]).encode())
    return digest.hexdigest()[:32]


def _open_or_build(
    cache: Path, key: str, reading: Reading, data: DataSection, encoder: Encoder, report: Progress
) -> tuple[TokenStore, bool, tuple[str, ...]]:
    """The store, whether it was there already, and what to tell about it."""
    notes: list[str] = []
    with locked(cache, key):
        try:
            store = open_store(cache, key)
        except StoreDamagedError as error:
            notes.append(f"the stored tokens were damaged ({error}), and are built again")
            remove_store(cache, key)
            store = None
        if store is not None:
            return store, True, ()
        with StoreBuilder(cache, key, token_type(encoder.vocabulary)) as builder:
            if builder.documents:
                notes.append(f"a build that was cut short is gone on with, after {builder.documents:,} files")
            _tokenise(builder, reading, data, encoder, report)
            repositories = {root: index for index, root in enumerate(reading.repositories)}
            builder.finish([(path_line(file), repositories[file.repository], file.language) for file in reading.files])
        store = open_store(cache, key)
    if store is None:
        raise FileNotFoundError(cache / key)
    return store, False, tuple(notes)


def _tokenise(builder: StoreBuilder, reading: Reading, data: DataSection, encoder: Encoder, report: Progress) -> None:
    """Appends every document that is not in the store yet, a few megabytes of text at a time.

    Raises:
        _ChangedError: a file differs from what was read before.
    """
    done = sum(file.size for file in reading.files[: builder.documents])
    total = sum(file.size for file in reading.files)
    for batch in _batches(reading, data, builder.documents):
        report(done, total, "bytes tokenised")
        for ids in encoder.encode_documents([(line, text) for line, text, _ in batch]):
            builder.append(ids)
        done += sum(size for _, _, size in batch)
    report(total, total, "bytes tokenised")


def _batches(reading: Reading, data: DataSection, first: int) -> Iterator[list[tuple[str, str, int]]]:
    """Path line, text and bytes of each document from `first` on, in groups of about _BATCH_BYTES."""
    folders = {root: Folder(str(root)) for root in reading.repositories}
    batch: list[tuple[str, str, int]] = []
    size = 0
    for file, digest in zip(reading.files[first:], reading.digests[first:], strict=True):
        document = read_document(folders[file.repository], file, data.max_file_bytes)
        if isinstance(document, str) or document.digest != digest:
            raise _ChangedError
        text = mask(document.text, reading.masked.get(file, []))
        batch.append((path_line(file), text, file.size))
        size += file.size
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _as_dataset(
    store: TokenStore,
    reading: Reading,
    collection: Collection,
    context: int,
    reused: bool,
    notes: tuple[str, ...],
    seconds: float,
) -> Dataset:
    boundary = int(store.offsets()[len(reading.files) - reading.held_out])
    train = Windows(store.tokens[:boundary], context)
    held_out = Windows(store.tokens[boundary:], context)
    skipped = Counter(collection.skipped)
    skipped.update(reading.skipped)
    return Dataset(
        train=train,
        held_out=held_out,
        summary=DatasetSummary(
            collection=collection,
            files=tuple(reading.files),
            held_out_files=reading.held_out,
            skipped=dict(skipped.most_common()),
            secrets=reading.secrets,
            source_bytes=sum(file.size for file in reading.files),
            train_tokens=boundary,
            held_out_tokens=len(store.tokens) - boundary,
            store=store.path,
            reused=reused,
            seconds=seconds,
            notes=notes,
        ),
        store=store,
    )
