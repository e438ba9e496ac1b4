"""A model of what a power loss leaves: records writes, names and syncs below a folder, and replays crash points.

The recorder stands around the system calls that change names or sync, and compares the folder before and after each of
them. So it sees every write, whatever library made it. The model is pessimistic:

- a file's content is on the disk once the file is synced; before, any of its contents since, or a torn one;
- a name is on the disk once its folder is synced; before, names of a folder that do not depend on each other may be
  there in any combination, and those that do (the same name or the same file) in their order;
- contents, names and folders are otherwise written in any order.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir", "write", "ftruncate", "truncate")


@dataclass(frozen=True)
class Names:
    """One atomic change of a folder's names: name → file, None where it goes."""

    folder: int
    changes: dict[str, int | None]


@dataclass(frozen=True)
class Data:
    """A file's new content."""

    file: int
    content: bytes


@dataclass(frozen=True)
class Sync:
    """A file or folder that was synced."""

    file: int


@dataclass(frozen=True)
class Note:
    """A point at which the program promised something."""

    promise: Any


Step = Names | Data | Sync | Note


@dataclass
class _Tree:
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)


class Recorder:
    """Records what happens below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: list[Step] = []
        self._tree = _Tree()
        self._ids: dict[int, int] = {}
        self._next = 0
        self._observe()
        self.start = len(self.steps)
        "Steps before it are the folder as it was found."

    def note(self, promise: Any) -> None:
        """Records that the program now promises something."""
        self._observe()
        self.steps.append(Note(promise))

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Records within the block."""
        originals = {name: getattr(os, name) for name in CALLS}
        for name, call in originals.items():
            setattr(os, name, self._watching(name, call))
        try:
            yield self
        finally:
            for name, call in originals.items():
                setattr(os, name, call)
            self._observe()

    def _watching(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._observe()
            result = call(*args, **kwargs)
            if name == "fsync":
                found = self._ids.get(os.fstat(args[0]).st_ino)
                if found is not None:
                    self.steps.append(Sync(found))
            else:
                self._observe()
            return result

        return watched

    def _observe(self) -> None:
        """Appends the differences between the folder and what was last seen of it."""
        seen = _Tree()
        kept: dict[int, int] = {}
        self._look(self.root, os.stat(self.root).st_ino, seen, kept)  # noqa: PTH116 - not one that is watched
        self._ids = kept
        before = self._tree
        for file, content in seen.contents.items():
            if before.contents.get(file) != content:
                self.steps.append(Data(file, content))
        self.steps += [Names(folder, {}) for folder in seen.names if folder not in before.names]
        for folder, names in seen.names.items():
            old = before.names.get(folder, {})
            changed: dict[str, int | None] = {n: names.get(n) for n in {*old, *names} if old.get(n) != names.get(n)}
            moved = {old.get(n) for n in changed} & {names.get(n) for n in changed} - {None}
            together = {n: f for n, f in changed.items() if f in moved or old.get(n) in moved}
            if together:
                self.steps.append(Names(folder, together))
            self.steps += [Names(folder, {n: f}) for n, f in changed.items() if n not in together]
        self._tree = seen

    def _look(self, path: Path, inode: int, seen: _Tree, kept: dict[int, int]) -> int:
        if inode in kept:
            return kept[inode]
        if inode not in self._ids:
            self._next += 1
        number = kept[inode] = self._ids.get(inode, self._next)
        if path.is_dir():
            with os.scandir(path) as entries:
                found = sorted((entry.name, entry.inode()) for entry in entries)
            seen.names[number] = {name: self._look(path / name, node, seen, kept) for name, node in found}
        elif path.is_file():
            seen.contents[number] = path.read_bytes()
        return number


class Disk:
    """What is on the disk, and what may be, after the first steps of a recording."""

    def __init__(self, recorder: Recorder, count: int) -> None:
        self.promises: list[Any] = []
        self._root = 1
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._coming: dict[int, list[bytes]] = {}
        self._changing: dict[int, list[Names]] = {}
        for place, step in enumerate(recorder.steps[:count]):
            if place == recorder.start:
                self._sync_all()
            self._take(step)
        if count <= recorder.start:
            self._sync_all()

    def _take(self, step: Step) -> None:
        if isinstance(step, Data):
            self._coming.setdefault(step.file, []).append(step.content)
        elif isinstance(step, Names):
            self._changing.setdefault(step.folder, []).append(step)
        elif isinstance(step, Sync):
            self._sync(step.file)
        else:
            self.promises.append(step.promise)

    def _sync(self, file: int) -> None:
        for content in self._coming.pop(file, ()):
            self._content[file] = content
        for change in self._changing.pop(file, ()):
            _apply(self._names.setdefault(file, {}), change)

    def _sync_all(self) -> None:
        for file in {*self._coming, *self._changing}:
            self._sync(file)

    def write(self, target: Path, choose: Chooser) -> None:
        """Writes what a power loss leaves, by a chooser, into an empty folder."""
        self._write(self._root, target, choose)

    def _write(self, folder: int, target: Path, choose: Chooser) -> None:
        names = dict(self._names.get(folder, {}))
        for group in _groups(self._changing.get(folder, [])):
            for change in group[: choose.names(len(group))]:
                _apply(names, change)
        for name, file in sorted(names.items()):
            path = target / name
            if file in self._names or file in self._changing:
                path.mkdir()
                self._write(file, path, choose)
            else:
                old = self._content.get(file, b"")
                path.write_bytes(choose.content(old, self._coming.get(file, [])))


def _apply(names: dict[str, int], change: Names) -> None:
    for name, file in change.changes.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _groups(changes: list[Names]) -> list[list[Names]]:
    """Separates the changes that depend on each other, by a name or a file, from the others."""
    groups: list[tuple[set[object], list[Names]]] = []
    for change in changes:
        keys: set[object] = {*change.changes, *(f for f in change.changes.values() if f is not None)}
        touching = [group for group in groups if group[0] & keys]
        groups = [group for group in groups if not group[0] & keys]
        members = [one for one in changes if any(one in group[1] for group in touching) or one is change]
        groups.append((keys.union(*(group[0] for group in touching)), members))
    return [members for _, members in groups]


class Chooser:
    """Chooses what reached the disk: nothing, all names and no contents, all, or by chance."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self._kind, self._random = kind, random.Random(seed)

    def names(self, count: int) -> int:
        """How many of the changes that depend on each other are on the disk."""
        if self._kind == "random":
            return self._random.randint(0, count)
        return 0 if self._kind == "nothing" else count

    def content(self, old: bytes, coming: list[bytes]) -> bytes:
        """The content of a file whose content on the disk is `old`."""
        if not coming or self._kind == "nothing":
            return old
        if self._kind == "all":
            return coming[-1]
        new = coming[-1] if self._kind == "names" else self._random.choice([old, *coming])
        # What is on the disk and was not written again stays.
        least = len(old) if new.startswith(old) else 0
        if self._kind == "names":
            return new[:least] + bytes(len(new) - least)
        how = self._random.random()
        cut = self._random.randint(least, len(new))
        if how < 0.3:
            return new
        if how < 0.6:
            return new[:cut]
        if how < 0.8:
            return new[:cut] + bytes(len(new) - cut)
        return new[:cut] + old[cut : len(new)]


def choosers(random_ones: int, seed: int) -> Iterator[Chooser]:
    """The three extremes, and so many by chance."""
    for kind in ("nothing", "names", "all"):
        yield Chooser(kind)
    for number in range(random_ones):
        yield Chooser("random", seed * 1_000_003 + number)
