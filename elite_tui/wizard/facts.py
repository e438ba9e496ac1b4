"""Summarises the repositories before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.data.collect import Collection


@dataclass(frozen=True, kw_only=True)
class LanguageShare:
    """One language's part of the repositories."""

    language: str
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RepositoryFacts:
    """Counts over all of a draft's repositories."""

    files: int
    bytes: int
    tokens: int
    "Estimated from the bytes."
    languages: tuple[LanguageShare, ...]
    "Largest first."
    skipped: Mapping[str, int]
    "Reason → number of files left out."
    listed_by: tuple[str, ...] = ()
    'How the files of each repository were found: "git", or how else.'


@dataclass(frozen=True)
class Reading:
    """Progress of reading the repositories."""

    share: float
    words: str


def facts_of(collection: Collection, tokens: int) -> RepositoryFacts:
    """Sums a collection by language."""
    files: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for file in collection.files:
        files[file.language] = files.get(file.language, 0) + 1
        sizes[file.language] = sizes.get(file.language, 0) + file.size
    languages = sorted(sizes, key=lambda language: (-sizes[language], language))
    return RepositoryFacts(
        files=len(collection.files),
        bytes=collection.total_bytes,
        tokens=tokens,
        languages=tuple(
            LanguageShare(language=language, files=files[language], bytes=sizes[language]) for language in languages
        ),
        skipped=dict(collection.skipped),
        listed_by=tuple(collection.listed_by.values()),
    )
