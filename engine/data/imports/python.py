"""Resolves Python's modules by dotted names, absolute and relative."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, shared


class PythonRules(ImportRules):
    """Modules by the tail of their path: what a package's root is called, and where it lies, no source file says."""

    _ROOTS = ((), ("src",), ("lib",), ("python",))
    "Folders whose modules are imported by their bare name from anywhere."

    def __init__(self, files: Files, repository: Repository) -> None:
        self._name = name = repository.name
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

    def _meant(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
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
        return max(ends_so, key=lambda parts: (shared(folder, parts[:-1]), -len(parts)), default=None)

    def _first(self, *candidates: tuple[str, ...]) -> Iterator[int]:
        for parts in candidates:
            if parts in self._by_path:
                yield self._by_path[parts]
                return
