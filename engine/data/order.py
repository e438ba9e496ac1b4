"""In which order the files of a repository are read: each after the files that it imports, where that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from engine.data.collect import SourceFile
from engine.data.imports import resolve


@dataclass(frozen=True)
class FileOrder:
    """An order of files, and what it rests on."""

    by: str
    '"imports" or "path".'
    positions: tuple[int, ...]
    "Numbers of the files, in their order."
    linked: int = 0
    "Files that import another one, or are imported."
    imports: int = 0
    "Pairs of files of which one imports the other."
    backward: int = 0
    "Of these, pairs whose imported file comes later: those that close a cycle."


def order_by_path(count: int) -> FileOrder:
    """Files as they were found, which is by repository and path."""
    return FileOrder("path", tuple(range(count)))


def order_files(files: Sequence[SourceFile], imports: Sequence[Sequence[str]]) -> FileOrder:
    """One repository after the other, each by its imports; files come by repository and path.

    Args:
        files: As they were found.
        imports: What each of them says that it imports (engine.data.syntax).
    """
    links: list[tuple[int, ...]] = []
    for repository, group in groupby(range(len(files)), key=lambda number: files[number].repository):
        numbers = list(group)
        found = resolve(
            [files[number].name for number in numbers],
            # Rows and commits only look like files of a repository.
            ["" if files[number].alone else files[number].language for number in numbers],
            [imports[number] for number in numbers],
            repository.name,
        )
        links += [tuple(numbers[other] for other in others) for others in found]
    return order_by_imports(links)


def order_by_imports(imports: Sequence[Sequence[int]]) -> FileOrder:
    """Each file after those that it imports, as close after them as can be; else by number.

    A walk in depth from each file in turn, which lists a file once everything that it imports is listed. Of a cycle,
    the import that leads back to a file whose imports are still being listed is passed over: the same one every time.

    Args:
        imports: For each file the numbers of those that it imports, in any order.
    """
    count = len(imports)
    positions: list[int] = []
    place = [-1] * count
    begun = [False] * count
    for first in range(count):
        if begun[first]:
            continue
        begun[first] = True
        # A stack instead of recursion: chains of imports may be thousands of files long.
        stack = [(first, iter(sorted(set(imports[first]))))]
        while stack:
            file, waiting = stack[-1]
            following = next((other for other in waiting if not begun[other]), None)
            if following is not None:
                begun[following] = True
                stack.append((following, iter(sorted(set(imports[following])))))
            else:
                stack.pop()
                place[file] = len(positions)
                positions.append(file)
    linked = [False] * count
    pairs = backward = 0
    for file in range(count):
        for other in set(imports[file]) - {file}:
            linked[file] = linked[other] = True
            pairs += 1
            backward += place[other] > place[file]
    return FileOrder("imports", tuple(positions), linked=sum(linked), imports=pairs, backward=backward)
