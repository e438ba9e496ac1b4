"""The first reading of every file: what is no text, a copy or a secret is found, and the rest is split in two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.collect import Collection, SourceFile
from engine.data.documents import read_document
from engine.data.near_duplicates import NearDuplicates
from engine.data.safe_files import Folder
from engine.data.secrets import Secret, find_secrets, hint
from engine.data.split import held_out_files

if TYPE_CHECKING:
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
class Reading:
    """The files that make the dataset, in the store's order, as they were when they were read."""

    files: list[SourceFile]
    digests: list[bytes]
    held_out: int
    "How many, at the end of the list."
    skipped: Counter[str]
    masked: dict[SourceFile, list[Secret]]
    "What is replaced in the text of a file."
    secrets: tuple[FoundSecret, ...]

    @property
    def repositories(self) -> list[Path]:
        """In the order in which their numbers in the store count."""
        return list(dict.fromkeys(sorted(file.repository for file in self.files)))


def read(collection: Collection, data: DataSection, report: Progress) -> Reading:
    """Reads every file once, drops what turns out to be no text or a copy, and splits the rest."""
    kept: list[tuple[SourceFile, bytes]] = []
    skipped: Counter[str] = Counter()
    digests: set[bytes] = set()
    alike = NearDuplicates()
    masked: dict[SourceFile, list[Secret]] = {}
    found: list[FoundSecret] = []
    folders = {root: Folder(str(root)) for root in collection.listed_by}
    for position, file in enumerate(collection.files):
        if position % 100 == 0:
            report(position, len(collection.files), "files read")
        document = read_document(folders[file.repository], file, data.max_file_bytes)
        if isinstance(document, str):
            skipped[document] += 1
            continue
        if document.digest in digests:
            skipped["duplicate"] += 1
            continue
        digests.add(document.digest)
        secrets = [] if data.secrets == "keep" else find_secrets(document.text, file.language)
        found += _describe_secrets(file, document.text, secrets)
        if secrets and data.secrets == "skip":
            skipped["secrets"] += 1
            continue
        if data.near_duplicates == "skip":
            alike.add(document.text)
        if secrets:
            masked[file] = secrets
        kept.append((file, document.digest))
    report(len(collection.files), len(collection.files), "files read")
    twins = alike.find(lambda number: _text(folders, kept[number][0], data))
    skipped["near-duplicate"] += len(twins)
    kept = [entry for number, entry in enumerate(kept) if number not in twins]
    held_out = held_out_files([file for file, _ in kept], data.held_out_fraction)
    # A stable sort: within each side, files stay in the order of their paths.
    order = sorted(range(len(kept)), key=lambda index: held_out[index])
    return Reading(
        files=[kept[index][0] for index in order],
        digests=[kept[index][1] for index in order],
        held_out=sum(held_out),
        skipped=+skipped,
        masked=masked,
        secrets=tuple(found),
    )


def _text(folders: dict[Path, Folder], file: SourceFile, data: DataSection) -> str:
    document = read_document(folders[file.repository], file, data.max_file_bytes)
    # A file that has changed since its first reading is noticed by its digest when it is tokenised.
    return "" if isinstance(document, str) else document.text


def _describe_secrets(file: SourceFile, text: str, secrets: list[Secret]) -> Iterator[FoundSecret]:
    for secret in secrets:
        line = text.count("\n", 0, secret.start) + 1
        yield FoundSecret(file, line, secret.kind, hint(text[secret.start : secret.end]))
