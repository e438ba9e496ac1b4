"""Orders the files of a repository, each after the files that it needs, where that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from engine.data.collect import SourceFile
from engine.data.cycles import in_order
from engine.data.imports import links


@dataclass(frozen=True)
class FileOrder:
    """An order of files, and what it rests on."""

    by: str
    '"imports" or "path".'
    positions: tuple[int, ...]
    "Numbers of the files, in their order."
    linked: int = 0
    "Files that need another one, or are needed."
    imports: int = 0
    "Pairs of files of which one needs the other."
    backward: int = 0
    "Of these, pairs whose needed file comes later: those that close a cycle."


def order_by_path(count: int) -> FileOrder:
    """Returns the files as they were found, which is by repository and path."""
    return FileOrder("path", tuple(range(count)))


def order_files(
    files: Sequence[SourceFile],
    imports: Sequence[Sequence[str]],
    manifests: Mapping[Path, Mapping[str, str]] | None = None,
) -> FileOrder:
    """Orders one repository after the other, each by its imports; files come by repository and path.

    Args:
        files: As they were found.
        imports: What each of them says that it imports, defines and mentions (engine.data.syntax).
        manifests: Of each repository, path → text of the files that build tools read.
    """
    needs: list[dict[int, int]] = []
    for repository, group in groupby(range(len(files)), key=lambda number: files[number].repository):
        numbers = list(group)
        found = links(
            [files[number].name for number in numbers],
            # Rows and commits only look like files of a repository.
            ["" if files[number].alone else files[number].language for number in numbers],
            [imports[number] for number in numbers],
            repository.name,
            (manifests or {}).get(repository),
        )
        needs += [{numbers[other]: strength for other, strength in others.items()} for others in found]
    return order_by_imports(needs)


def order_by_imports(imports: Sequence[Sequence[int] | Mapping[int, int]]) -> FileOrder:
    """Orders the files, each after those that it needs and as close after them as can be; else by number.

    Args:
        imports: For each file the numbers of those that it needs, in any order, with the strength of each link where
            one is known. Of a cycle the weakest links are passed over: the same ones every time.
    """
    needs = [
        {other: strength for other, strength in sorted(each.items()) if other != file}
        if isinstance(each, Mapping)
        else dict.fromkeys(sorted(set(each) - {file}), 1)
        for file, each in enumerate(imports)
    ]
    positions = in_order(needs)
    place = [0] * len(positions)
    for position, file in enumerate(positions):
        place[file] = position
    linked = [False] * len(needs)
    pairs = backward = 0
    for file, others in enumerate(needs):
        for other in others:
            linked[file] = linked[other] = True
            pairs += 1
            backward += place[other] > place[file]
    return FileOrder("imports", tuple(positions), linked=sum(linked), imports=pairs, backward=backward)
