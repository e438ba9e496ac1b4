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
from engine.data.cache import prune
from engine.data.collect import EXAMPLES, Collection, SourceFile, describe_skipped
from engine.data.documents import Texts, edited, path_line
from engine.data.encoded import REVISION as ENCODED_REVISION
from engine.data.fim import REVISION as FIM_REVISION
from engine.data.fim import cut_points
from engine.data.history import LANGUAGE as DIFF
from engine.data.languages import NOTEBOOK
from engine.data.licences import REVISION as LICENCES_REVISION
from engine.data.near_duplicates import REVISION as NEAR_DUPLICATES_REVISION
from engine.data.order import FileOrder
from engine.data.reading import FoundSecret, Progress, ReadFile, Reading, Twin, read
from engine.data.secrets import REVISION as SECRETS_REVISION
from engine.data.sources import open_sources
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
from engine.data.syntax import REVISION as SYNTAX_REVISION
from engine.data.windows import Windows
from engine.tokenization.encoder import Encoder

if TYPE_CHECKING:
    from engine.config import DataSection

_BATCH_BYTES = 2 << 20
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
    examples: Mapping[str, tuple[str, ...]]
    "Reason → the first few files that were left out for it."
    secrets: tuple[FoundSecret, ...]
    "Found and kept out, by file and line."
    twins: tuple[Twin, ...]
    "Files that are almost the same as another."
    licence_headers: int
    "Repeated ones that were taken out."
    order: FileOrder
    leak: float
    "Share of the six-line runs of held-out files that training files hold too."
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
    if data.fim and encoder.fim is None:
        raise errors.FIM_UNAVAILABLE(rate=data.fim)
    for _attempt in range(_ATTEMPTS):
        with open_sources(data, lambda done, total: report(done, total, "files found")) as sources:
            collection = sources.collection
            reading = read(collection, data, sources.texts, report)
            if len(reading.files) < 2:
                raise _too_little(data, collection, reading)
            key = _key(reading, data, encoder)
            try:
                store, reused, notes = _open_or_build(cache, key, reading, data, sources.texts, encoder, report)
            except _ChangedError:
                continue
        prune(cache, keep=data.stores_kept, present=key)
        seconds = time.monotonic() - started
        windows = _windows(store, reading, context, together=data.packing)
        notes = (*reading.notes, *notes)
        return Dataset(*windows, _summary(store, reading, collection, reused, notes, seconds), store)
    raise errors.REPOSITORY_CHANGING(path=_named(data))


def _named(data: DataSection) -> str:
    return ", ".join((*data.repositories, *data.datasets))


def _too_little(data: DataSection, collection: Collection, reading: Reading) -> errors.EliteError:
    path = _named(data)
    if reading.files:
        tokens = f"about {reading.estimated_tokens:,}"
        return errors.REPOSITORY_TOO_SMALL(path=path, tokens=tokens, files=len(reading.files))
    skipped = Counter(collection.skipped) + reading.skipped
    return errors.REPOSITORY_NO_SOURCE(path=path, skipped=describe_skipped(dict(skipped.most_common())))


def _key(reading: Reading, data: DataSection, encoder: Encoder) -> str:
    """Names the store by everything that determines its content."""
    digest = hashlib.sha256()
    revisions = [SECRETS_REVISION, NEAR_DUPLICATES_REVISION, SYNTAX_REVISION, LICENCES_REVISION, FIM_REVISION]
    revisions.append(ENCODED_REVISION)
    options = [
        "encoded" in data.include,
        data.max_file_bytes,
        data.secrets,
        data.near_duplicates,
        data.licence_headers,
        data.fim,
        sorted(data.allowed_secrets),
    ]
    digest.update(json.dumps([FORMAT, encoder.fingerprint, reading.held_out, options, revisions]).encode())
    for item in reading.files:
        name = path_line(item.file)
        digest.update(json.dumps([name, item.file.size, item.digest.hex(), item.document]).encode())
    return digest.hexdigest()[:32]


def _open_or_build(
    cache: Path, key: str, reading: Reading, data: DataSection, texts: Texts, encoder: Encoder, report: Progress
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
            if builder.files:
                notes.append(f"a build that was cut short is gone on with, after {builder.files:,} files")
            _tokenise(builder, reading, data.fim, texts, encoder, report)
            repositories = {root: index for index, root in enumerate(reading.repositories)}
            entries = [
                (path_line(item.file), repositories[item.file.repository], item.file.language, item.document)
                for item in reading.files
            ]
            builder.finish(entries, encoder.newlines, encoder.depths)
        store = open_store(cache, key)
    if store is None:
        raise FileNotFoundError(cache / key)
    return store, False, tuple(notes)


def _tokenise(
    builder: StoreBuilder, reading: Reading, fim: float, texts: Texts, encoder: Encoder, report: Progress
) -> None:
    """Appends every file that is not in the store yet, a few megabytes of text at a time.

    Raises:
        _ChangedError: a file differs from what was read before.
    """
    done = sum(item.file.size for item in reading.files[: builder.files])
    total = sum(item.file.size for item in reading.files)
    train = len(reading.files) - reading.held_out
    for batch in _batches(reading, texts, builder.files):
        report(done, total, "bytes tokenised")
        # Held-out files stay as they are, so that their loss can be compared whatever is trained on.
        rates = [0.0 if builder.files + offset >= train else fim for offset in range(len(batch))]
        documents = [
            (path_line(item.file), text, _middle(item, text, rate))
            for (item, text), rate in zip(batch, rates, strict=True)
        ]
        for (item, _), (_, text, middle), ids in zip(batch, documents, encoder.encode_middles(documents), strict=True):
            # What is rearranged has no place that is good for a cut.
            lines = item.definitions if middle is None else item.definitions[:0]
            builder.append(ids, encoder.lines_to_tokens(ids, text, lines))
            done += item.file.size
    report(total, total, "bytes tokenised")


def _middle(item: ReadFile, text: str, rate: float) -> tuple[int, int] | None:
    if not rate or item.file.language in (DIFF, NOTEBOOK):
        return None
    return cut_points(text, path_line(item.file), item.digest, rate)


def _batches(reading: Reading, texts: Texts, first: int) -> Iterator[list[tuple[ReadFile, str]]]:
    """Files from `first` on with their texts, in groups of about _BATCH_BYTES."""
    batch: list[tuple[ReadFile, str]] = []
    size = 0
    for item in reading.files[first:]:
        document = texts.read(item.file)
        if isinstance(document, str) or document.digest != item.digest:
            raise _ChangedError
        text = edited(document.text, item.edits)
        batch.append((item, text))
        size += len(text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _windows(store: TokenStore, reading: Reading, context: int, *, together: bool) -> tuple[Windows, Windows]:
    """Training and held-out windows."""
    boundary = int(store.offsets()[len(reading.files) - reading.held_out])
    layout, end = store.layout(), len(store.tokens)
    return (
        Windows(store.tokens[:boundary], context, layout.of(0, boundary), together=together),
        Windows(store.tokens[boundary:], context, layout.of(boundary, end), together=together),
    )


def _summary(
    store: TokenStore, reading: Reading, collection: Collection, reused: bool, notes: tuple[str, ...], seconds: float
) -> DatasetSummary:
    boundary = int(store.offsets()[len(reading.files) - reading.held_out])
    skipped = Counter(collection.skipped)
    skipped.update(reading.skipped)
    examples = {
        reason: (*collection.examples.get(reason, ()), *reading.examples.get(reason, ()))[:EXAMPLES]
        for reason in skipped
    }
    return DatasetSummary(
        collection=collection,
        files=tuple(item.file for item in reading.files),
        held_out_files=reading.held_out,
        skipped=dict(skipped.most_common()),
        examples=examples,
        secrets=reading.secrets,
        twins=reading.twins,
        licence_headers=reading.licence_headers,
        order=reading.order,
        leak=reading.leak,
        source_bytes=sum(item.file.size for item in reading.files),
        train_tokens=boundary,
        held_out_tokens=len(store.tokens) - boundary,
        store=store.path,
        reused=reused,
        seconds=seconds,
        notes=notes,
    )
