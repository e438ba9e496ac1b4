"""Resolves Lua's `require "a.b"` by the tail of a path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, Tails, joined

_REQUIRE = re.compile(r"(?:\brequire|\bdofile|\bloadfile)\b[ \t]*\(?[ \t]*(?:\[\[|['\"])([^'\"\n\]]+)")
_COMMENT = re.compile(r"--\[(=*)\[.*?(?:\]\1\]|\Z)|--[^\n]*", re.DOTALL)


def scan(text: str) -> Iterator[str]:
    """Yields the text in the quotation marks."""
    for found in _REQUIRE.finditer(_COMMENT.sub(" ", text) if "--" in text else text):
        yield found[1]


class LuaRules(ImportRules):
    """Modules with dots for folders; `init.lua` stands for its folder."""

    def __init__(self, files: Files, repository: Repository) -> None:  # noqa: ARG002
        files = list(files)
        self._tails = Tails(files)
        self._by_path = {str(path): number for number, path in files}

    def _meant(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        if wanted.endswith((".lua", ".luau")):
            found = self._by_path.get(joined(path.parent, wanted))
            found = self._tails.nearest(wanted, path.parent) if found is None else found
            if found is not None:
                yield found
            return
        if wanted.startswith("."):  # Luau's and Fennel's relative paths
            bases = [joined(path.parent, wanted)]
            for tail in (f"{base}{end}" for base in bases for end in (".lua", ".luau", "/init.lua", "/init.luau")):
                if tail in self._by_path:
                    yield self._by_path[tail]
                    return
            return
        base = wanted.replace(".", "/")
        tails = (f"{base}.lua", f"{base}/init.lua", f"{base}.luau", f"{base}/init.luau")
        found = next((found for tail in tails if (found := self._rooted(path, tail)) is not None), None)
        if found is None and "/" in base:
            found = next((n for tail in tails if (n := self._tails.nearest(tail, path.parent)) is not None), None)
        if found is not None:
            yield found

    def _rooted(self, path: PurePosixPath, tail: str) -> int | None:
        """Returns a file below a folder that programs are started in, or that holds sources."""
        for root in (*path.parents, *(folder / name for folder in path.parents for name in ("src", "lib", "lua"))):
            found = self._by_path.get(f"{root}/{tail}" if root.parts else tail)
            # A program may be called like the package that it starts.
            if found is not None and self._by_path.get(str(path)) != found:
                return found
        return None
