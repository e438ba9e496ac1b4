"""The first reading of every source: what is no text, a copy or a secret is found; the rest is ordered and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.collect import EXAMPLES, Collection, SourceFile
from engine.data.documents import Document, Edit, Texts, edited
from engine.data.licences import find_header, fingerprint
from engine.data.near_duplicates import NearDuplicates
from engine.data.order import FileOrder, order_by_path, order_files
from engine.data.packages import packages
from engine.data.secrets import PLACEHOLDER, find_secrets, hint
from engine.data.split import held_out_files
from engine.data.syntax import Outline, outline

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.config import DataSection

Progress = Callable[[int, int, str], None]
"Done, total, and what is counted: files, or bytes."


@dataclass(frozen=True)
class FoundSecret:
    """A secret that was kept out of the dataset."""

    file: SourceFile
    line: int
    "Counts from 1."
    kind: str
    hint: str
    "Its first characters."


@dataclass(frozen=True)
class Twin:
    """A file that is almost the same as an earlier one."""

    file: SourceFile
    like: SourceFile
    side: str
    '"left out", "training" or "held out".'


@dataclass(frozen=True)
class ReadFile:
    """A source that makes part of the dataset."""

    file: SourceFile
    digest: bytes
    "SHA-256 of its bytes when it was read."
    definitions: npt.NDArray[np.uint32]
    "Lines of its edited text that are worth a cut before them."
    document: int
    "Number of the document that it is a part of."
    edits: tuple[Edit, ...]
    "What is replaced in its text."


@dataclass(frozen=True)
class Reading:
    """What makes the dataset, in the store's order, as it was when it was read."""

    files: tuple[ReadFile, ...]
    held_out: int
    "How many, at the end of the list."
    skipped: Counter[str]
    examples: dict[str, list[str]]
    secrets: tuple[FoundSecret, ...]
    twins: tuple[Twin, ...]
    licence_headers: int
    "Repeated ones that are taken out."
    order: FileOrder

    @property
    def repositories(self) -> list[Path]:
        """In the order in which their numbers in the store count."""
        return sorted({read.file.repository for read in self.files})


def read(collection: Collection, data: DataSection, texts: Texts, report: Progress) -> Reading:
    """Reads every source once, drops what turns out to be no text or a copy, and orders and splits the rest."""
    reader = _Reader(data, texts)
    for position, file in enumerate(collection.files):
        if position % 100 == 0:
            report(position, len(collection.files), "files read")
        reader.take(file)
    report(len(collection.files), len(collection.files), "files read")
    return reader.finish()


@dataclass
class _Kept:
    file: SourceFile
    digest: bytes
    outline: Outline
    edits: tuple[Edit, ...]
    like: int | None
    "Number of the earlier file that it is a near-duplicate of."


@dataclass
class _Reader:
    """Takes sources in the order of their paths."""

    data: DataSection
    texts: Texts
    kept: list[_Kept] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    secrets: list[FoundSecret] = field(default_factory=list)
    twins: list[tuple[SourceFile, int]] = field(default_factory=list)
    licence_headers: int = 0

    def __post_init__(self) -> None:
        self._digests: dict[bytes, int] = {}
        self._headers: set[bytes] = set()
        self._alike = NearDuplicates(self._text_again)

    def take(self, file: SourceFile) -> None:
        """Reads one source, and keeps it unless there is a reason not to."""
        document = self.texts.read(file)
        if isinstance(document, str):
            self._skip(file, document)
            return
        copy_of = self._digests.get(document.digest)
        if copy_of is not None and "duplicate" not in self.data.include:
            self._skip(file, "duplicate")
            return
        edits, has_secrets = self._edits(file, document)
        if has_secrets and self.data.secrets == "skip":
            self._skip(file, "secrets")
            return
        header = self._repeated_header(document.text)
        if header is not None:
            edits = [header, *(edit for edit in edits if edit.start >= header.end)]
        text = edited(document.text, edits)
        if not text.strip():
            self._skip(file, "empty")
            return
        like = self._alike.add(len(self.kept), text) if copy_of is None else copy_of
        if like is not None and copy_of is None:
            self.twins.append((file, like))
            if self.data.near_duplicates == "skip":
                self._skip(file, "near-duplicate")
                return
        self.licence_headers += header is not None
        self._digests.setdefault(document.digest, len(self.kept))
        found = outline(text, file.language, file.path)
        self.kept.append(_Kept(file, document.digest, found, tuple(edits), like))

    def _skip(self, file: SourceFile, reason: str) -> None:
        self.skipped[reason] += 1
        named = self.examples.setdefault(reason, [])
        if len(named) < EXAMPLES:
            named.append(f"{file.repository}/{file.path}")

    def _edits(self, file: SourceFile, document: Document) -> tuple[list[Edit], bool]:
        if self.data.secrets == "keep":
            return [], False
        secrets = find_secrets(document.text, file.language)
        for secret in secrets:
            line = document.text.count("\n", 0, secret.start) + 1
            shown = hint(document.text[secret.start : secret.end])
            self.secrets.append(FoundSecret(file, line, secret.kind, shown))
        return [Edit(secret.start, secret.end, PLACEHOLDER) for secret in secrets], bool(secrets)

    def _repeated_header(self, text: str) -> Edit | None:
        """The edit that takes out a licence header that an earlier file has."""
        if self.data.licence_headers == "keep" or (found := find_header(text)) is None:
            return None
        start, end = found
        print_ = fingerprint(text[start:end])
        if print_ in self._headers:
            return Edit(start, end)
        self._headers.add(print_)
        return None

    def _text_again(self, number: int) -> str:
        kept = self.kept[number]
        document = self.texts.read(kept.file)
        # A file that has changed since its first reading is noticed by its digest when it is tokenised.
        return "" if isinstance(document, str) else edited(document.text, kept.edits)

    def finish(self) -> Reading:
        """Orders what was kept, and splits it into training and held-out files."""
        files = [kept.file for kept in self.kept]
        held_out = held_out_files(files, self.data.held_out_fraction)
        for number, kept in enumerate(self.kept):
            if kept.like is not None:
                held_out[number] = held_out[kept.like]
        order = order_by_path(len(files))
        if self.data.order == "imports":
            order = order_files(files, [kept.outline.imports for kept in self.kept])
        positions = sorted(order.positions, key=lambda number: held_out[number])
        documents = list(_documents(files, positions, held_out, self.data))
        # Files of one document follow each other; a stable sort, so that each keeps its order.
        in_order = sorted(zip(documents, positions, strict=True), key=lambda pair: pair[0])
        return Reading(
            files=tuple(
                ReadFile(
                    self.kept[number].file,
                    self.kept[number].digest,
                    self.kept[number].outline.definitions,
                    document,
                    self.kept[number].edits,
                )
                for document, number in in_order
            ),
            held_out=sum(held_out),
            skipped=self.skipped,
            examples=self.examples,
            secrets=tuple(self.secrets),
            twins=tuple(Twin(file, files[like], self._side(held_out[like])) for file, like in self.twins),
            licence_headers=self.licence_headers,
            order=order,
        )

    def _side(self, held_out: bool) -> str:
        if self.data.near_duplicates == "skip":
            return "left out"
        return "held out" if held_out else "training"


def _documents(
    files: Sequence[SourceFile], positions: Sequence[int], held_out: Sequence[bool], data: DataSection
) -> Iterator[int]:
    """Number of the document of each file at `positions`, counted as they first appear."""
    numbers: dict[object, int] = {}
    package_of = packages(files) if data.documents == "package" else None
    for number in positions:
        file = files[number]
        key: object = (file.repository, held_out[number])
        if data.documents == "file":
            key = number
        elif package_of is not None:
            key = (file.repository, held_out[number], package_of[number])
        yield numbers.setdefault(key, len(numbers))
