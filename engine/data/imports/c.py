"""Resolves headers of C, C++ and CUDA by their path."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, joined, shared

_INCLUDE = re.compile(r"\n[ \t]*#[ \t]*(?:include|import)[ \t]*(\"[^\"\n]+\"|<[^>\n]+>)")


def scan(text: str) -> Iterator[str]:
    """Returns `"x.h"` or `<x.h>` for each include, as written."""
    return (found[1] for found in _INCLUDE.finditer(f"\n{text}"))


class CRules(ImportRules):
    """A header by its path from the including file, else by the tail of its path: the nearest one."""

    def __init__(self, files: Files, repository: Repository) -> None:  # noqa: ARG002
        self._by_path: dict[str, int] = {}
        self._by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        for number, path in files:
            self._by_path[str(path)] = number
            self._by_name[path.name].append(path)

    def _meant(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        name = wanted[1:-1]
        if wanted.startswith('"') and (beside := joined(path.parent, name)) in self._by_path:
            yield self._by_path[beside]
            return
        tail = PurePosixPath(name).parts
        ends_so = [p for p in self._by_name.get(tail[-1] if tail else "", ()) if p.parts[-len(tail) :] == tail]
        if ends_so:
            nearest = min(
                ends_so,
                key=lambda other: (-shared(path.parent.parts, other.parent.parts), len(other.parts), str(other)),
            )
            yield self._by_path[str(nearest)]
