"""Holds what the rules of all languages share: strengths, the files of a repository, and paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import PurePosixPath

MOST = 64
"Files that one import may mean; a package of more is not followed to each."


class Strength(IntEnum):
    """How surely one file needs another; of a cycle the weakest link is cut."""

    GUESS = 1
    "One of several files, a member's name, or a name that the file does not make visible."
    MENTION = 2
    "A name in the text; an import of types alone."
    BASE = 3
    "A class that another one extends."
    IMPORT = 4
    "An import, by a path or a full name."


Files = Iterable[tuple[int, PurePosixPath]]
"A family's files, by their numbers."


@dataclass(frozen=True)
class Repository:
    """What all files of one repository say."""

    imports: Sequence[Sequence[str]] = ()
    "Of each file, as engine.data.syntax gives them."
    name: str = ""
    "Of the repository's folder, which may be a package itself."
    manifests: Mapping[str, str] = field(default_factory=dict)
    "Path → text of the files that build tools read (engine.data.packages)."


class ImportRules:
    """The files that the imports of one family of languages mean."""

    def __init__(self, files: Files, repository: Repository) -> None:
        """Takes in the family's files."""

    def links(self, number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        """Returns the files that one file needs, each with the strength; a file may come several times.

        Args:
            number: Of the file.
            path: Of the file.
            wanted: What it imports.
        """
        return self._links(number, path, wanted)

    def _links(self, _number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        for each in wanted:
            for found in sorted(self._meant(path, each))[:MOST]:
                yield found, Strength.IMPORT

    def _meant(self, _path: PurePosixPath, _wanted: str) -> Iterable[int]:
        """Returns the numbers of the files that one import of the file at a path means."""
        return ()


def joined(folder: PurePosixPath, relative: str) -> str:
    """Returns joins a path to a folder, without dots; returns "" where it leads out of the repository."""
    parts = list(folder.parts)
    for part in relative.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def shared(folder: Sequence[str], other: Sequence[str]) -> int:
    """Counts the folders that two paths begin with alike."""
    return next(
        (count for count, (a, b) in enumerate(zip(folder, other, strict=False)) if a != b), min(len(folder), len(other))
    )


class Tails:
    """Files by the tail of their path, the nearest one first."""

    def __init__(self, files: Files) -> None:
        self._by_name: dict[str, list[tuple[int, PurePosixPath]]] = {}
        for number, path in files:
            self._by_name.setdefault(path.name, []).append((number, path))

    def nearest(self, tail: str, folder: PurePosixPath) -> int | None:
        """Returns the file whose path ends in `tail`, of several the one with most folders in common; else None."""
        parts = tuple(part for part in tail.split("/") if part not in ("", "."))
        if not parts or ".." in parts:
            return None
        found = [(n, p) for n, p in self._by_name.get(parts[-1], ()) if p.parts[-len(parts) :] == parts]
        if not found:
            return None
        return min(found, key=lambda f: (-shared(folder.parts, f[1].parent.parts), len(f[1].parts), str(f[1])))[0]
