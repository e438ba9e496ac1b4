"""Cuts single lines out of held-out files: what an editor's completion is asked for most often."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from engine.data.syntax import grammar_name
from engine.evaluation.functions import KINDS, HeldOutFunction, SourceText
from engine.evaluation.parsing import identifiers, parses

SHORTEST, LONGEST = 8, 200
"Characters of an eligible line."
FIRST = 8
"Lines before it: a file's licence and imports say little of what comes next."
PER_FILE = 6
"""Maximum lines of one file, so that one large file does not stand for the repository."""
_LARGEST_FILE = 400_000


def choose_lines(files: Iterable[SourceText], most: int) -> list[HeldOutFunction]:
    """Samples lines over all files, deterministically for the same files; a line is a body of its own.

    Args:
        files: Files to search.
        most: Maximum number of lines.
    """
    if most <= 0:
        return []
    found = [line for file in files for line in _of_file(file)]
    found.sort(key=_rank)
    return found[:most]


def _of_file(file: SourceText) -> Iterator[HeldOutFunction]:
    grammar = grammar_name(file.language, PurePosixPath(file.path))
    if grammar not in KINDS or len(file.text) > _LARGEST_FILE or not parses(file.text, grammar):
        return
    lines = file.text.split("\n")
    chosen = []
    for number in range(FIRST, len(lines)):
        line = lines[number]
        if not SHORTEST <= len(line.strip()) <= LONGEST or not identifiers(line, grammar):
            continue
        chosen.append(
            HeldOutFunction(
                path=file.path,
                language=file.language,
                grammar=grammar,
                prefix="\n".join(lines[:number]) + "\n",
                body=line,
                suffix="\n" + "\n".join(lines[number + 1 :]),
                header=len("\n".join(lines[: number - FIRST])),
            )
        )
    chosen.sort(key=_rank)
    yield from chosen[:PER_FILE]


def _rank(line: HeldOutFunction) -> bytes:
    """Returns a pseudo-random sort key that depends on path and content only."""
    text = f"{line.path}\0{line.prefix.count(chr(10))}\0{line.body}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def line_end(written: str) -> int | None:
    """Returns how many characters of `written` belong to the line; None while it continues."""
    start = len(written) - len(written.lstrip("\n"))
    end = written.find("\n", start)
    return None if end < 0 or not written[start:end].strip() else end
