"""Resolves the scripts that shell scripts source or run, by what stands literally at the end of a path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, Strength, Tails, joined

_COMMENT = re.compile(r"(?:^|(?<=[\s;&|]))#[^\n]*", re.MULTILINE)
_BEFORE = r"(?:^|[;&|({]|\b(?:then|else|do|if|while|exec|sudo|command|builtin|eval)\b|!)[ \t]*"
_PATH = r"((?:\"[^\"\n]{1,300}\"|'[^'\n]{1,300}'|\$\([^)\n]{1,200}\)|\$\{[^}\n]{1,200}\}|\\.|[^\s;&|<>()\"'#])+)"
_SOURCE = re.compile(rf"{_BEFORE}(?:source|\.)[ \t]+(?:--[ \t]+)?{_PATH}", re.MULTILINE)
_RUN = re.compile(rf"{_BEFORE}(?:(?:ba|da|k|z|fi)?sh[ \t]+(?:-\w+[ \t]+)*)?(?=[\"'$./\w]){_PATH}", re.MULTILINE)
# What a program or a variable gives: $(dirname "$0"), ${BASH_SOURCE%/*}, $DIR.
_GIVEN = re.compile(r"\$\([^)\n]{0,200}\)\)*|\$\{[^}\n]{0,200}\}+|\$[\w@*#?!-]+|`[^`\n]{0,200}`|~")
_KNOWN = re.compile(r"[\w.@+-]+(?:/[\w.@+-]+)*")


def scan(text: str) -> Iterator[str]:
    """Yields `.a/b` for a script that is sourced and `!a/b` for one that is run: the end of the path that is literal.

    A slash before it (`./a/b`, as `.` + `/a/b`) says that something that is not known stands there.
    """
    code = _COMMENT.sub("", text)
    for found in _SOURCE.findall(code):
        if end := _literal(found):
            yield f".{end}"
    for found in _RUN.findall(code):
        # Without a slash it is a command of the PATH.
        if "/" in found and (end := _literal(found)):
            yield f"!{end}"


def _literal(path: str) -> str:
    path = re.sub(r"[\"'\\]", "", _GIVEN.sub("\0", path))
    given, known, rest = path.rpartition("\0")
    if known and not rest.startswith("/"):
        return ""
    end = rest.lstrip("/")
    if not _KNOWN.fullmatch(end):
        return ""
    return f"/{end}" if given or known else end


class ShellRules(ImportRules):
    """Paths from the script's folder, from the repository's root, or by their end."""

    def __init__(self, files: Files, repository: Repository) -> None:  # noqa: ARG002
        files = list(files)
        self._tails = Tails(files)
        self._by_path = {str(path): number for number, path in files}

    def _links(self, _number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        for word in wanted:
            strength = Strength.IMPORT if word[0] == "." else Strength.MENTION
            if (found := self._by_its_path(path, word[1:].lstrip("/"))) is not None:
                yield found, strength
            elif (found := self._by_its_end(path, word[1:].lstrip("/"))) is not None:
                # A path without a variable may lead to what is no part of the repository.
                yield found, strength if word[1:2] == "/" else Strength.GUESS

    def _by_its_path(self, path: PurePosixPath, tail: str) -> int | None:
        for folder in (path.parent, PurePosixPath()):
            if (found := self._by_path.get(joined(folder, tail))) is not None:
                return found
        return None

    def _by_its_end(self, path: PurePosixPath, tail: str) -> int | None:
        while tail.startswith(("../", "./")):
            tail = tail.partition("/")[2]
        return self._tails.nearest(tail, path.parent)
