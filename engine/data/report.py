"""DataReport: what a dataset holds, as `engine data --json` prints it and a preview shows it. Plain values, no torch.

`describe` is a pure function of a Dataset; engine.data.preview builds the Dataset of a configuration first. All
names of files are printable, secrets are masked, and everything is JSON after `dataclasses.asdict`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.data.documents import spelled_out
from engine.data.filters import KEPT_BY, REASONS
from engine.data.packing import Cut
from engine.data.pairs import PairWindows, longest_sides
from engine.data.secrets import masked_name
from engine.data.split import MORE_HELD_OUT, few_held_out
from engine.plan.tiers import tiers

if TYPE_CHECKING:
    from engine.data.collect import SourceFile
    from engine.data.dataset import Dataset

HEAD = 20
"Files of the order that a report names."


@dataclass(frozen=True, kw_only=True)
class RepositoryRow:
    """One folder, or data set, that was read."""

    path: str
    listed_by: str
    'How its files were found: "git", or why not.'


@dataclass(frozen=True, kw_only=True)
class LanguageRow:
    """One language's part of what is learnt."""

    language: str
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class SkippedRow:
    """Files that were left out for one reason."""

    reason: str
    explanation: str
    files: int
    examples: tuple[str, ...]
    "A few of their paths."
    kept_by: str
    'Setting that keeps them ("data.include=[vendored]"), "" for none.'


@dataclass(frozen=True, kw_only=True)
class SecretRow:
    """One secret that was found."""

    file: str
    line: int
    kind: str
    "Name of the rule that found it."
    hint: str
    "At most its first four characters."
    fingerprint: str
    "What data.allowed_secrets calls it by: the same for the same value wherever it stands."


@dataclass(frozen=True, kw_only=True)
class TwinRow:
    """A file that is almost the same as another."""

    file: str
    like: str
    side: str
    '"left out", or where it went with its twin: "training" or "held out".'


@dataclass(frozen=True, kw_only=True)
class WindowsRow:
    """What the windows of one tier hold."""

    tier: int
    context: int
    train: int
    "Windows a pass."
    held_out: int
    documents: int
    "Documents, or parts of them, in the training windows together."
    cut_inside: int
    "Training windows, or parts of them, that end within a definition: after a statement, a line or any token."
    cut_after_statement: int = 0
    "Of these, those that end after a statement, as far as brackets tell."
    cut_after_line: int = 0
    "Of these, those that end after a line within a statement."
    cut_after_token: int = 0
    "Of these, those that end within a line."
    cut_before_definition: int = 0
    "Those that end before a definition."
    cut_before_file: int = 0
    "Those that end before a file of the same document."
    waste: float
    "Share of the places of all training windows but the last that stay empty."
    padded: float
    "The same, if each document or part of one had a window of its own: what packing saves."


@dataclass(frozen=True, kw_only=True)
class OrderRow:
    """How the files follow each other."""

    by: str
    '"imports" or "path".'
    linked: int
    "Files that import another one of the repositories, or are imported."
    imports: int
    "Imports that lead to a file of the repositories."
    backward: int
    "Of these, imports whose file comes later: those that close a cycle."
    head: tuple[str, ...]
    "The first training files."


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """What is kept out of training."""

    files: int
    tokens: int
    share: float
    "Of all tokens."
    leak: float = 0.0
    "Share of their runs of six lines that training files hold too; of very many files, of a sample of them."


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One source's part: a repository's code, the history, or a data set."""

    name: str
    documents: int
    "Training ones."
    tokens: int
    "Of training documents."
    loss_tokens: int
    "Of these, those that are predicted."
    held_out_tokens: int
    held_out_loss_tokens: int
    share: float | None
    "Of the tokens that a run trains on, by data.mixture. None: each token is seen once in a pass."
    passes: float
    "Times that its tokens are seen in a pass."


@dataclass(frozen=True, kw_only=True)
class FimRow:
    """How much is rearranged for fill-in-the-middle."""

    share: float
    "Of the training files of 100 to 12,000 characters: data.fim, or its default."
    files: int
    "Training files that it chooses from, of any length: no conversations, commits, notebooks, nor rows of prose."


@dataclass(frozen=True, kw_only=True)
class ConversationTier:
    """What one tier does to the conversations."""

    tier: int
    context: int
    whole: int
    "Those that fit."
    longer: int
    "Those that data.overlong decides about."


@dataclass(frozen=True, kw_only=True)
class ConversationsRow:
    """The conversations, training and held-out ones."""

    count: int
    tokens: int
    longest: int
    "In tokens."
    tiers: tuple[ConversationTier, ...]
    fits: int | None
    "The lowest tier that holds each of them whole; None if none does."


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """A dataset in figures. Sizes in bytes, times in seconds."""

    repositories: tuple[RepositoryRow, ...]
    submodules: tuple[str, ...]
    "Repositories within, left out."
    languages: tuple[LanguageRow, ...]
    "Largest first."
    skipped: tuple[SkippedRow, ...]
    "Most first."
    secrets: tuple[SecretRow, ...]
    near_duplicates: tuple[TwinRow, ...]
    licence_headers: int
    "Repeated ones that were taken out."
    crlf_files: int
    "Files whose lines ended as on Windows throughout, and are read without the carriage returns."
    files: int
    bytes: int
    tokens: int
    train_tokens: int
    loss_tokens: int = 0
    "Tokens that are predicted: all but the first of each document, and of conversations the answers."
    fim: FimRow | None = None
    "None: unknown, since the model's tokenizer is not on disk."
    sources: tuple[SourceRow, ...] = ()
    conversations: ConversationsRow | None = None
    "None: there are none."
    held_out: HeldOutRow
    order: OrderRow
    windows: tuple[WindowsRow, ...]
    "One row a tier."
    store: str
    reused: bool
    "Whether nothing had to be tokenised."
    seconds: float
    notes: tuple[str, ...]
    "Sentences that a person should see."

    @property
    def skipped_files(self) -> int:
        """Files left out, for all reasons together."""
        return sum(row.files for row in self.skipped)


def describe(dataset: Dataset, notes: tuple[str, ...] = ()) -> DataReport:
    """The dataset in figures; `notes` are added to its own."""
    summary = dataset.summary
    if few := few_held_out(summary.held_out_tokens):
        notes = (*notes, f"{few}; {MORE_HELD_OUT}")
    return DataReport(
        repositories=tuple(
            RepositoryRow(path=printable(path), listed_by=printable(how))
            for path, how in summary.collection.listed_by.items()
        ),
        submodules=tuple(map(printable, summary.collection.submodules)),
        languages=_languages(summary.files),
        skipped=tuple(
            SkippedRow(
                reason=reason,
                explanation=REASONS[reason],
                files=count,
                examples=tuple(map(printable, summary.examples.get(reason, ()))),
                kept_by=KEPT_BY.get(reason, ""),
            )
            for reason, count in summary.skipped.items()
        ),
        secrets=tuple(
            SecretRow(
                file=_name(secret.file),
                line=secret.line,
                kind=secret.kind,
                hint=printable(secret.hint),
                fingerprint=secret.fingerprint,
            )
            for secret in summary.secrets
        ),
        near_duplicates=tuple(
            TwinRow(file=_name(twin.file), like=_name(twin.like), side=twin.side) for twin in summary.twins
        ),
        licence_headers=summary.licence_headers,
        crlf_files=summary.crlf_files,
        files=len(summary.files),
        bytes=summary.source_bytes,
        tokens=summary.tokens,
        train_tokens=summary.train_tokens,
        loss_tokens=summary.loss_tokens,
        fim=FimRow(share=summary.fim, files=summary.fim_files),
        sources=tuple(
            SourceRow(**{**dataclasses.asdict(source), "name": printable(source.name)}) for source in summary.sources
        ),
        conversations=_conversations(dataset),
        held_out=HeldOutRow(
            files=summary.held_out_files,
            tokens=summary.held_out_tokens,
            share=summary.held_out_tokens / max(summary.tokens, 1),
            leak=summary.leak,
        ),
        order=OrderRow(
            by=summary.order.by,
            linked=summary.order.linked,
            imports=summary.order.imports,
            backward=summary.order.backward,
            head=tuple(_name(file) for file in summary.files[: min(HEAD, len(summary.files) - summary.held_out_files)]),
        ),
        windows=_windows(dataset),
        store=printable(summary.store),
        reused=summary.reused,
        seconds=round(summary.seconds, 3),
        notes=tuple(map(printable, (*notes, *summary.notes))),
    )


def printable(value: object) -> str:
    """Text that comes from file names: line ends, escapes and bytes that are no text spelled out, tokens masked."""
    return masked_name(spelled_out(str(value)))


def _name(file: SourceFile) -> str:
    return printable(file.repository / file.name)


def _languages(files: tuple[SourceFile, ...]) -> tuple[LanguageRow, ...]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for file in files:
        counts[file.language] += 1
        sizes[file.language] += file.size
    return tuple(
        LanguageRow(language=language, files=counts[language], bytes=size) for language, size in sizes.most_common()
    )


def _conversations(dataset: Dataset) -> ConversationsRow | None:
    stored = lengths = dataset.store.conversations()
    if not len(lengths):
        return None
    if isinstance(dataset.train, PairWindows):
        lengths = longest_sides(dataset.store)
    longest = int(lengths.max())
    rows = []
    for tier in tiers():
        whole = int((lengths <= tier.context).sum())
        rows.append(ConversationTier(tier=tier.number, context=tier.context, whole=whole, longer=len(lengths) - whole))
    return ConversationsRow(
        count=len(lengths),
        tokens=int(stored.sum()),
        longest=longest,
        tiers=tuple(rows),
        fits=next((row.tier for row in rows if not row.longer), None),
    )


def _windows(dataset: Dataset) -> tuple[WindowsRow, ...]:
    rows = []
    train, held_out = dataset.train, dataset.held_out
    for tier in tiers():
        # Once one window holds everything, a longer one holds the same.
        if len(train) != 1 or train.context > tier.context:
            train = dataset.train.with_context(tier.context)
        if len(held_out) != 1 or held_out.context > tier.context:
            held_out = dataset.held_out.with_context(tier.context)
        figures = train.figures
        rows.append(
            WindowsRow(
                tier=tier.number,
                context=tier.context,
                train=len(train),
                held_out=len(held_out),
                documents=figures.documents,
                cut_inside=figures.cut_inside,
                cut_after_statement=figures.cuts[Cut.STATEMENT],
                cut_after_line=figures.cuts[Cut.LINE],
                cut_after_token=figures.cuts[Cut.TOKEN],
                cut_before_definition=figures.cuts[Cut.DEFINITION],
                cut_before_file=figures.cuts[Cut.FILE],
                waste=figures.waste,
                padded=figures.padded(tier.context),
            )
        )
    return tuple(rows)
