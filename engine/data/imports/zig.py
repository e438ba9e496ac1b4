"""Resolves Zig's `@import` of a path, or of a module that build.zig names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, joined

_IMPORT = re.compile(r'@import\([ \t\n]*"([^"\n]+)"')
_COMMENT = re.compile(r'//[^\n]*|\\\\[^\n]*|"(?:[^"\\\n]|\\.)*"?')
_ROOT = re.compile(r'\broot_source_file\s*=\s*(?:\.\{\s*\.path\s*=\s*|b\.path\(\s*)"([^"\n]+\.zig)"')


def scan(text: str) -> Iterator[str]:
    """Yields the text in the quotation marks of `@import`, and `root:x.zig` for the roots of modules in build.zig."""
    if "@import" in text or "root_source_file" in text:
        # Comments and the lines of long strings hold examples.
        code = _COMMENT.sub(lambda found: found[0] if found[0][0] == '"' else " ", text)
        for found in _IMPORT.finditer(code):
            yield found[1]
        for found in _ROOT.finditer(code):
            yield f"root:{found[1]}"


class ZigRules(ImportRules):
    """Paths from the importing file; a module is the root of its name that a build.zig has."""

    def __init__(self, files: Files, repository: Repository) -> None:
        self._by_path: dict[str, int] = {}
        self._modules: dict[str, int] = {}
        roots = []
        for number, path in files:
            self._by_path[str(path)] = number
            if path.name == "build.zig" and repository.imports:
                words = (word[5:] for word in repository.imports[number] if word.startswith("root:"))
                roots += [joined(path.parent, word) for word in words]
        for root in roots:
            if root in self._by_path:
                name = PurePosixPath(root).stem
                if name in ("main", "root", "lib"):
                    continue
                self._modules.setdefault(name, self._by_path[root])

    def _meant(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        if wanted.endswith((".zig", ".zon")):
            found = self._by_path.get(joined(path.parent, wanted))
        else:
            found = self._modules.get(wanted, self._modules.get(wanted.replace("-", "_")))
        if found is not None:
            yield found
