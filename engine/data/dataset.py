"""From repositories to windows of tokens: collect, read, split, tokenise, store."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.data.cache import prune
from engine.data.charset import REVISION as CHARSET_REVISION
from engine.data.chats import TEMPLATES, Chats, find_template
from engine.data.collect import Collection, SourceFile, describe_skipped
from engine.data.conversations import LANGUAGE as CONVERSATION
from engine.data.conversations import REVISION as CONVERSATIONS_REVISION
from engine.data.conversations import Conversation
from engine.data.documents import Texts, edited, edited_conversation, path_line
from engine.data.encoded import REVISION as ENCODED_REVISION
from engine.data.encoding import Making, encode_sources, may_be_rearranged
from engine.data.fim import REVISION as FIM_REVISION
from engine.data.fim import share_of
from engine.data.licences import REVISION as LICENCES_REVISION
from engine.data.mixture import Mixture, SourceFigures, described
from engine.data.near_duplicates import REVISION as NEAR_DUPLICATES_REVISION
from engine.data.order import FileOrder
from engine.data.pairs import longest_sides, pair_windows
from engine.data.reading import FoundSecret, Progress, ReadFile, Reading, Twin, read
from engine.data.rows import ROW_EXAMPLES, Row
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
from engine.errors import EliteError
from engine.errors.data import (
    CHAT_TEMPLATE_UNUSABLE,
    CONVERSATIONS_OVERLONG,
    MIXTURE_INVALID,
    REPOSITORY_CHANGING,
    REPOSITORY_NO_SOURCE,
    REPOSITORY_TOO_SMALL,
)
from engine.plan.tiers import tiers
from engine.quantities import counted
from engine.tokenization.encoder import Encoder

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.config import DataSection
    from engine.data.labels import TokenWeights
    from engine.data.packing import Layout
    from engine.tokenization.chat_template import ChatTemplate


_BATCH_BYTES = 3 << 18
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
    crlf_files: int
    "Files whose lines ended as on Windows throughout, and are read without the carriage returns."
    order: FileOrder
    leak: float
    "Share of the six-line runs of held-out files that training files hold too."
    source_bytes: int
    train_tokens: int
    held_out_tokens: int
    loss_tokens: int
    "Those of both that are predicted: all but the first of each document, and of conversations the answers."
    fim: float
    "Share of the training files that are rearranged for fill-in-the-middle: data.fim, or its default."
    fim_files: int
    "Training files that it chooses from, by their kind; those that are too short or too long are among them."
    sources: tuple[SourceFigures, ...]
    "What each source holds."
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
    data: DataSection,
    *,
    tokenizer: Any,
    context: int,
    cache: Path,
    progress: Progress | None = None,
    limit: int | None = None,
    preferences: bool = False,
) -> Dataset:
    """Windows of `context` tokens over the repositories' files; reuses the store of an unchanged repository.

    Args:
        data: Repositories and what to leave out.
        tokenizer: A tokenizers.Tokenizer, or a fast tokenizer of transformers.
        context: Tokens a window.
        cache: Folder that keeps stores.
        progress: Told how far it is, a few times a second at most.
        limit: Tokens of the longest conversation that is trained on; `data.overlong` decides about longer ones. None:
            nothing is decided, and they are counted.
        preferences: Whether rows are pairs of a chosen and a rejected answer; both sides of one are a window
            (engine.data.pairs.PairWindows).

    Raises:
        EliteError: REPOSITORY_* for unusable repositories, OUTPUT_UNWRITABLE for the cache, CHAT_TEMPLATE_*,
            CONVERSATIONS_OVERLONG, MIXTURE_INVALID, FIM_UNAVAILABLE.
        ValueError: the tokenizer is not a fast one.
    """
    report = progress or (lambda _done, _total, _what: None)
    started = time.monotonic()
    encoder = Encoder(tokenizer)
    fim = share_of(data, encoder.fim)
    mixture = Mixture(data)
    if preferences and mixture.shares is not None:
        problem = "pairs of preferences are taken as they come"
        raise MIXTURE_INVALID(problem=problem, remedy="leave data.mixture empty, or set training.objective=sft")
    chats = _chats(tokenizer, encoder, data)
    template = None if chats is None else chats.template
    for _attempt in range(_ATTEMPTS):
        found = functools.partial(_files_found, report)
        with open_sources(data, found, template, preferences=preferences) as sources:
            collection = sources.collection
            reading = read(collection, data, sources.texts, report, chats)
            if len(reading.files) < 2:
                raise _too_little(data, collection, reading, template)
            cut = limit if data.overlong == "cut-oldest-tool-output" and chats is not None else None
            making = Making(encoder, chats, fim, cut)
            key = _key(reading, data, making)
            try:
                store, reused, notes = _open_or_build(cache, key, reading, sources.texts, making, report)
            except _ChangedError:
                continue
        prune(cache, keep=data.stores_kept, present=key)
        seconds = time.monotonic() - started
        drop = limit is not None and data.overlong in ("drop", "cut-oldest-tool-output")
        if preferences:
            windows: tuple[Windows, Windows] = pair_windows(store, reading.held_out, context)
            lengths = longest_sides(store)
        else:
            windows = _windows(store, reading, mixture, context, together=data.packing, drop_longer=drop)
            lengths = store.conversations()
        notes = (*reading.notes, *notes)
        if limit is not None:
            notes += _decide_overlong(store, lengths, reading, data, limit)
        taken = None if mixture.shares is None else windows[0].source_tokens()
        files = [item.file for item in reading.files]
        figures = mixture.figures(store, files, reading.held_out, taken)
        notes += tuple(described(source) for source in figures if source.share is not None)
        return Dataset(*windows, _summary(store, reading, collection, fim, figures, reused, notes, seconds), store)
    raise REPOSITORY_CHANGING(path=_named(data))


def _files_found(report: Progress, done: int, total: int) -> None:
    report(done, total, "files found")


def _named(data: DataSection) -> str:
    return ", ".join((*data.repositories, *data.datasets))


def _chats(tokenizer: Any, encoder: Encoder, data: DataSection) -> Chats | None:
    """The chat template of the data; None where there is none."""
    if not (data.datasets or data.chat_template):
        return None
    template = find_template(tokenizer, encoder, data.chat_template)
    return None if template is None else Chats(encoder, template)


def _decide_overlong(
    store: TokenStore, lengths: npt.NDArray[np.int64], reading: Reading, data: DataSection, limit: int
) -> tuple[str, ...]:
    """Refuses or counts the conversations that are longer than the context, and says what becomes of them.

    `lengths` are the tokens of each one, of a pair those of its longer side.

    Raises:
        EliteError: CONVERSATIONS_OVERLONG.
    """
    longer = int((lengths > limit).sum())
    told = []
    if longer and data.overlong == "refuse":
        longest = int(lengths.max())
        tier = next((tier for tier in tiers() if tier.context >= longest), None)
        text = "no tier holds all"
        if tier is not None:
            text = f"train at tier {tier.number} ({tier.context:,} tokens), which holds all"
        raise CONVERSATIONS_OVERLONG(
            longer=f"{longer:,}", count=f"{len(lengths):,}", context=f"{limit:,}", longest=f"{longest:,}", tier=text
        )
    if store.shortened:
        told.append(f"{store.shortened:,} conversations had output of tools cut, the oldest first, to {limit:,} tokens")
    if longer and data.overlong == "split":
        told.append(f"{longer:,} conversations are longer than {limit:,} tokens, and are cut into several windows")
    elif longer:
        reading.skipped["overlong"] += longer
        told.append(f"{longer:,} conversations are longer than {limit:,} tokens, and are left out")
    return tuple(told)


def _too_little(
    data: DataSection, collection: Collection, reading: Reading, template: ChatTemplate | None
) -> EliteError:
    path = _named(data)
    if template is not None and not reading.files:
        for reason in ("not split", "template"):
            if reading.skipped[reason]:
                problem = reading.examples[reason][0].rpartition(": ")[2]
                problem = f"{reading.skipped[reason]:,} conversations cannot be written by it, the first as {problem}"
                return CHAT_TEMPLATE_UNUSABLE(name=template.name, problem=problem, known=", ".join(TEMPLATES))
    skipped = Counter(collection.skipped) + reading.skipped
    told = describe_skipped(dict(skipped.most_common()))
    if reading.files:
        tokens = f"about {reading.estimated_tokens:,}"
        path += f" ({told})" if skipped else ""
        return REPOSITORY_TOO_SMALL(path=path, tokens=tokens, files=counted(len(reading.files), "file"))
    return REPOSITORY_NO_SOURCE(path=path, skipped=told)


def _key(reading: Reading, data: DataSection, making: Making) -> str:
    """Names the store by everything that determines its content."""
    digest = hashlib.sha256()
    revisions = [SECRETS_REVISION, NEAR_DUPLICATES_REVISION, SYNTAX_REVISION, LICENCES_REVISION, FIM_REVISION]
    revisions += [ENCODED_REVISION, CHARSET_REVISION]
    options: list[Any] = [
        "encoded" in data.include,
        data.max_file_bytes,
        data.secrets,
        data.near_duplicates,
        data.licence_headers,
        making.fim,
        sorted(data.allowed_secrets),
    ]
    if any(item.file.language == CONVERSATION for item in reading.files):
        options += ["" if making.chats is None else making.chats.fingerprint, making.cut, CONVERSATIONS_REVISION]
    digest.update(json.dumps([FORMAT, making.encoder.fingerprint, reading.held_out, options, revisions]).encode())
    for item in reading.files:
        name = path_line(item.file)
        told = [name, item.file.size, item.digest.hex(), item.document]
        if isinstance(item.file, Row) and item.file.weight != 1:
            told.append(item.file.weight)
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()[:32]


def _open_or_build(
    cache: Path, key: str, reading: Reading, texts: Texts, making: Making, report: Progress
) -> tuple[TokenStore, bool, tuple[str, ...]]:
    """The store, whether it was there already, and what to tell about it."""
    notes: list[str] = []
    encoder = making.encoder
    masked = any(item.file.language == CONVERSATION for item in reading.files)
    with locked(cache, key):
        try:
            store = open_store(cache, key)
        except StoreDamagedError as error:
            notes.append(f"the stored tokens were damaged ({error}), and are built again")
            remove_store(cache, key)
            store = None
        if store is not None:
            return store, True, ()
        with StoreBuilder(cache, key, token_type(encoder.vocabulary), masked=masked) as builder:
            if builder.files:
                notes.append(f"a build that was cut short is gone on with, after {builder.files:,} files")
            _tokenise(builder, reading, texts, making, report)
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


def _tokenise(builder: StoreBuilder, reading: Reading, texts: Texts, making: Making, report: Progress) -> None:
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
        rates = [0.0 if builder.files + offset >= train else making.fim for offset in range(len(batch))]
        for (item, _), made in zip(batch, encode_sources(batch, rates, making), strict=True):
            builder.append(made.ids, made.places, made.learnt, made.weights, shortened=made.shortened)
            done += item.file.size
    report(total, total, "bytes tokenised")


def _batches(reading: Reading, texts: Texts, first: int) -> Iterator[list[tuple[ReadFile, str | Conversation]]]:
    """Files from `first` on with their texts, in groups of at most _BATCH_BYTES or of one file."""
    batch: list[tuple[ReadFile, str | Conversation]] = []
    size = 0
    for item in reading.files[first:]:
        document = texts.read(item.file)
        if isinstance(document, str) or document.digest != item.digest:
            raise _ChangedError
        if batch and size + len(document.text) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        talks = document.conversation is not None
        batch.append((item, edited_conversation(document, item.edits) if talks else edited(document.text, item.edits)))
        size += len(document.text)
    if batch:
        yield batch


def _windows(
    store: TokenStore, reading: Reading, mixture: Mixture, context: int, *, together: bool, drop_longer: bool
) -> tuple[Windows, Windows]:
    """Training and held-out windows."""
    boundary = int(store.offsets()[len(reading.files) - reading.held_out])
    plain, end = store.layout(), len(store.tokens)
    layout = plain
    if mixture.shares is not None:
        numbers = np.array([mixture.number(item.file) for item in reading.files], dtype=np.int64)
        layout = replace(plain, sources=numbers[np.searchsorted(plain.files, plain.documents)])

    def windows(
        start: int, stop: int, part: Layout, weights: TokenWeights | None, shares: tuple[float, ...] | None
    ) -> Windows:
        return Windows(
            store.tokens[start:stop],
            context,
            part,
            together=together,
            learnt=None if store.learnt is None else store.learnt.of(start, stop),
            weights=weights,
            drop_longer=drop_longer,
            shares=shares,
        )

    # Weights and shares steer the training. Each held-out token counts once, so that a loss stays one of tokens.
    return (
        windows(0, boundary, layout.of(0, boundary), store.weights, mixture.shares),
        windows(boundary, end, plain.of(boundary, end), None, None),
    )


def _summary(
    store: TokenStore,
    reading: Reading,
    collection: Collection,
    fim: float,
    sources: tuple[SourceFigures, ...],
    reused: bool,
    notes: tuple[str, ...],
    seconds: float,
) -> DatasetSummary:
    boundary = int(store.offsets()[len(reading.files) - reading.held_out])
    skipped = Counter(collection.skipped)
    skipped.update(reading.skipped)
    examples = {
        reason: (*collection.examples.get(reason, ()), *reading.examples.get(reason, ()))[:ROW_EXAMPLES]
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
        crlf_files=reading.crlf_files,
        order=reading.order,
        leak=reading.leak,
        source_bytes=sum(item.file.size for item in reading.files),
        train_tokens=boundary,
        held_out_tokens=len(store.tokens) - boundary,
        loss_tokens=store.loss_tokens(),
        fim=fim,
        fim_files=sum(may_be_rearranged(item.file) for item in reading.files[: len(reading.files) - reading.held_out]),
        sources=sources,
        store=store.path,
        reused=reused,
        seconds=seconds,
        notes=notes,
    )
