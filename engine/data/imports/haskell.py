"""Resolves Haskell's imports by the names that modules give themselves."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, shared

_NAME = r"[A-Z][\w']*(?:\.[A-Z][\w']*)*"
# A row of dashes and signs, such as -->, is an operator. Strings are matched so that none begins a comment.
_NO_CODE = re.compile(
    r"(?<![!#$%&*+./<=>?@\\^|~:-])--+(?![!#$%&*+./<=>?@\\^|~:-])[^\n]*|(\{-)"
    r"|(\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)')"
)
_BRACES = re.compile(r"\{-|(-\})")
_MODULE = re.compile(rf"^module[ \t\r\n]+({_NAME})", re.MULTILINE)
# Literate Haskell writes code behind >.
_IMPORT = re.compile(
    rf"^(?:>[ \t]*)?[ \t]*import[ \t]+(?:safe[ \t]+)?(?:qualified[ \t]+)?(?:\"[^\"\n]*\"[ \t]+)?({_NAME})", re.MULTILINE
)


def scan(text: str) -> Iterator[str]:
    """Yields `=A.B` for the module that a file is, and `A.B` for each that it imports."""
    # {-# SOURCE #-} breaks a cycle of imports: such an import says no order.
    code = re.sub(r"\bimport[ \t]+\{-#[ \t]*SOURCE[^\n]*", " ", text)
    code = "".join(_without_comments(code))
    if (found := _MODULE.search(code)) is not None:
        yield f"={found[1]}"
    yield from _IMPORT.findall(code)


def _without_comments(text: str) -> Iterator[str]:
    """Yields what is no comment; comments may stand within comments."""
    position = 0
    while (found := _NO_CODE.search(text, position)) is not None:
        yield text[position : found.start()]
        position = found.end()
        yield found[2] or " "
        depth = 1 if found[1] else 0
        while depth:
            brace = _BRACES.search(text, position)
            if brace is None:
                return
            depth += -1 if brace[1] else 1
            position = brace.end()
    yield text[position:]


class HaskellRules(ImportRules):
    """Modules by their names; of packages that have one of the same name, that with the most folders in common."""

    def __init__(self, files: Files, repository: Repository) -> None:
        self._defined: dict[str, list[tuple[int, PurePosixPath]]] = defaultdict(list)
        for number, path in files:
            for word in repository.imports[number] if repository.imports else ():
                if word[0] == "=":
                    self._defined[word[1:]].append((number, path))

    def _meant(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        if found := self._defined.get(wanted):
            yield max(found, key=lambda each: (shared(path.parent.parts, each[1].parent.parts), -each[0]))[0]
