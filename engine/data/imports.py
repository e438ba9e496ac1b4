"""From what files say that they import to the files of the repository that are meant.

Paths and names only: no build file is evaluated, and an import that leads outside leads nowhere. Each language's rules
are one small class; a file may mean several (a package of Go, a wildcard of Java).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from engine.data.languages import NOTEBOOK

_MOST = 64
"Files that one import may mean; a package of more is not followed to each."


class _Rules(Protocol):
    def __init__(self, files: Iterable[tuple[int, PurePosixPath]], name: str) -> None:
        """Takes the language's files, by their numbers, and the name of the repository's folder."""

    def find(self, path: PurePosixPath, wanted: str) -> Iterable[int]:
        """Numbers of the files that an import of the file at `path` means."""


def resolve(
    names: Sequence[str], languages: Sequence[str], imports: Sequence[Sequence[str]], name: str = ""
) -> list[tuple[int, ...]]:
    """For each file of one repository the numbers of those that it imports, ascending.

    Args:
        names: Paths of the files, within the repository.
        languages: Of the files.
        imports: Of each file, as engine.data.syntax gives them.
        name: Of the repository's folder, which may be a package itself.
    """
    # Path objects are made as they are needed: all of a large repository's would take hundreds of megabytes.
    rules: dict[type[_Rules], _Rules] = {}
    for family in {_RULES[language] for language in set(languages) & _RULES.keys()}:
        own = (number for number, language in enumerate(languages) if _RULES.get(language) is family)
        rules[family] = family(((number, PurePosixPath(names[number])) for number in own), name)
    found = []
    for number, (language, wanted) in enumerate(zip(languages, imports, strict=True)):
        meant: set[int] = set()
        if wanted and language in _RULES:
            path = PurePosixPath(names[number])
            for each in wanted:
                meant.update(sorted(rules[_RULES[language]].find(path, each))[:_MOST])
        meant.discard(number)
        found.append(tuple(sorted(meant)))
    return found


class _Python:
    """Modules by the tail of their path: what a package's root is called, and where it lies, no source file says."""

    _ROOTS = ((), ("src",), ("lib",), ("python",))
    "Folders whose modules are imported by their bare name from anywhere."

    def __init__(self, files: Iterable[tuple[int, PurePosixPath]], name: str) -> None:
        self._name = name
        self._by_path: dict[tuple[str, ...], int] = {}
        for number, path in files:
            if path.suffix == ".ipynb":
                continue  # nothing imports a notebook
            parts = path.parent.parts if path.stem == "__init__" else (*path.parent.parts, path.stem)
            # A stub and its module have one name: the module counts, which has the definitions.
            if path.suffix != ".pyi" or parts not in self._by_path:
                self._by_path[parts] = number
        self._by_last: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for parts in sorted(self._by_path):
            self._by_last[parts[-1] if parts else name].append(parts)

    def find(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        module, colon, name = wanted.partition(":")
        member = (name,) if colon and name != "*" else ()
        if module.startswith("."):
            level = len(module) - len(module.lstrip(".")) - 1
            folder = path.parent.parts
            if level <= len(folder):
                base = (*folder[: len(folder) - level], *filter(None, module.split(".")))
                yield from self._first(base + member, base)
            return
        absolute = tuple(module.split("."))
        for parts in (absolute + member, absolute) if member else (absolute,):
            found = self._absolute(path.parent.parts, parts)
            if found is not None:
                yield self._by_path[found]
                return

    def _absolute(self, folder: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...] | None:
        if wanted[0] == self._name and wanted[1:] in self._by_path:
            return wanted[1:]  # the repository is itself the package
        ends_so = [parts for parts in self._by_last.get(wanted[-1], ()) if parts[-len(wanted) :] == wanted]
        if len(wanted) == 1:
            # A bare name is that of a script's neighbour, or of a module at a root; deeper ones are of packages.
            ends_so = [parts for parts in ends_so if parts[:-1] in (*self._ROOTS, folder)]
        return max(ends_so, key=lambda parts: (_shared(folder, parts[:-1]), -len(parts)), default=None)

    def _first(self, *candidates: tuple[str, ...]) -> Iterator[int]:
        for parts in candidates:
            if parts in self._by_path:
                yield self._by_path[parts]
                return


class _JavaScript:
    """Relative paths, with the endings that bundlers try, and `@/…` for the source folder."""

    _ENDINGS = (".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs", ".d.ts", ".vue", ".svelte")

    def __init__(self, files: Iterable[tuple[int, PurePosixPath]], name: str) -> None:  # noqa: ARG002
        self._by_path = {str(path): number for number, path in files}

    def find(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        if wanted.startswith("."):
            bases = [_joined(path.parent, wanted)]
        elif wanted.startswith(("@/", "~/")):
            # The source folder is the nearest one called so, else the repository's own.
            above = [folder for folder in path.parents if folder.name in ("src", "app")]
            bases = [str(folder / wanted[2:]) for folder in above] + [wanted[2:]]
        else:
            return
        for base in filter(None, bases):
            stem = base.removesuffix(".js").removesuffix(".mjs")
            endings = [base, *(root + ending for root in (base, stem) for ending in self._ENDINGS)]
            for name in (*endings, *(f"{base}/index{ending}" for ending in self._ENDINGS)):
                if name in self._by_path:
                    yield self._by_path[name]
                    return


class _Rust:
    """`mod a;` is a file beside; `crate::`, `self::` and `super::` count from the crate's and the module's folder."""

    def __init__(self, files: Iterable[tuple[int, PurePosixPath]], name: str) -> None:  # noqa: ARG002
        self._by_path: dict[str, int] = {}
        self._roots: set[PurePosixPath] = set()
        for number, path in files:
            self._by_path[str(path)] = number
            if path.name in ("lib.rs", "main.rs"):
                self._roots.add(path.parent)
        self._crates = {root.parent.name.replace("-", "_"): root for root in sorted(self._roots) if root.name == "src"}

    def find(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        own = path.parent if path.name in ("mod.rs", "lib.rs", "main.rs") else path.parent / path.stem
        if wanted.startswith("mod:"):
            yield from self._longest(own, [wanted[4:]])
            return
        head, *rest = wanted.split("::")
        if head == "crate":
            root = next((folder for folder in path.parents if folder in self._roots), None)
            if root is not None:
                yield from self._longest(root, rest)
        elif head == "self":
            yield from self._longest(own, rest)
        elif head == "super":
            folder = own.parent
            while rest[:1] == ["super"]:
                folder, rest = folder.parent, rest[1:]
            yield from self._longest(folder, rest)
        elif head in self._crates:
            yield from self._longest(self._crates[head], rest or ["lib"])

    def _longest(self, folder: PurePosixPath, names: Sequence[str]) -> Iterator[int]:
        for count in range(len(names), 0, -1):
            base = folder.joinpath(*names[:count])
            for path in (f"{base}.rs", f"{base}/mod.rs"):
                if path in self._by_path:
                    yield self._by_path[path]
                    return


class _Go:
    """A path ends in the folder of the package; how much of it is the module's own name is in no source file."""

    def __init__(self, files: Iterable[tuple[int, PurePosixPath]], name: str) -> None:  # noqa: ARG002
        self._by_folder: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, path in files:
            if not path.name.endswith("_test.go"):
                self._by_folder[path.parent.parts].append(number)

    def find(self, path: PurePosixPath, wanted: str) -> Iterable[int]:
        parts = tuple(wanted.split("/"))
        # Without a dot in its first part it is the standard library's, or the repository's by its whole name.
        last = len(parts) if "." in parts[0] else 1
        for first in range(last):
            if parts[first:] in self._by_folder and parts[first:] != path.parent.parts:
                return self._by_folder[parts[first:]]
        return ()


class _Java:
    """Classes by the tail of their path; a member or an inner class is found by its outer one."""

    def __init__(self, files: Iterable[tuple[int, PurePosixPath]], name: str) -> None:  # noqa: ARG002
        self._by_name: dict[str, list[tuple[int, PurePosixPath]]] = defaultdict(list)
        self._by_folder: dict[str, list[tuple[int, PurePosixPath]]] = defaultdict(list)
        for number, path in files:
            self._by_name[path.stem].append((number, path))
            self._by_folder[path.parent.name].append((number, path))

    def find(self, path: PurePosixPath, wanted: str) -> Iterator[int]:  # noqa: ARG002 - Java's names are absolute
        parts = wanted.split(".")
        if parts[-1] == "*":
            tail = tuple(parts[:-1])
            for number, other in self._by_folder.get(tail[-1], ()) if tail else ():
                if other.parent.parts[-len(tail) :] == tail:
                    yield number
        for count in range(len(parts), 1, -1):
            tail = (*parts[: count - 1],)
            for number, other in self._by_name.get(parts[count - 1], ()):
                if other.parent.parts[-len(tail) :] == tail:
                    yield number
                    return


class _C:
    """A header by its path from the including file, else by the tail of its path: the nearest one."""

    def __init__(self, files: Iterable[tuple[int, PurePosixPath]], name: str) -> None:  # noqa: ARG002
        self._by_path: dict[str, int] = {}
        self._by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        for number, path in files:
            self._by_path[str(path)] = number
            self._by_name[path.name].append(path)

    def find(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        name = wanted[1:-1]
        if wanted.startswith('"') and (beside := _joined(path.parent, name)) in self._by_path:
            yield self._by_path[beside]
            return
        tail = PurePosixPath(name).parts
        ends_so = [p for p in self._by_name.get(tail[-1] if tail else "", ()) if p.parts[-len(tail) :] == tail]
        if ends_so:
            nearest = min(
                ends_so,
                key=lambda other: (-_shared(path.parent.parts, other.parent.parts), len(other.parts), str(other)),
            )
            yield self._by_path[str(nearest)]


_RULES: dict[str, type[_Rules]] = {
    "Python": _Python,
    NOTEBOOK: _Python,
    "JavaScript": _JavaScript,
    "TypeScript": _JavaScript,
    "Rust": _Rust,
    "Go": _Go,
    "Java": _Java,
    "C": _C,
    "C++": _C,
    "CUDA": _C,
}


def _joined(folder: PurePosixPath, relative: str) -> str:
    """A path relative to a folder, without dots; "" where it leads out of the repository."""
    parts = list(folder.parts)
    for part in relative.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _shared(folder: Sequence[str], other: Sequence[str]) -> int:
    """Folders that two paths begin with alike."""
    return next(
        (count for count, (a, b) in enumerate(zip(folder, other, strict=False)) if a != b), min(len(folder), len(other))
    )
