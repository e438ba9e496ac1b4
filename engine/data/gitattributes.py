"""Reads from .gitattributes files which files are generated, vendored or documentation, and their language.

Each file's rules hold for its folder and those below; the nearest file with an opinion decides, within it the last
line. The attributes are those of GitHub's linguist, which people set so that others' code does not count as theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from engine.data.gitignore import exactly
from engine.data.safe_files import Folder, NotRegularError

NAME = ".gitattributes"
_LONGEST = 1 << 20
_REASONS = {
    "linguist-generated": "generated",
    "gitlab-generated": "generated",
    "linguist-vendored": "vendored",
    "linguist-documentation": "documentation",
}
"Attribute → the reason (of engine.data.filters.REASONS) to leave a file out."
_LANGUAGE = "linguist-language"
_NO = frozenset({"false", "no", "0", "off"})

Marks = Mapping[str, bool | str]
'Reason → whether a file is marked as such; "language" → the name of its language.'


class Attributes:
    """The .gitattributes files of one folder and those below."""

    def __init__(self, folder: Folder, paths: Iterable[PurePosixPath]) -> None:
        """Reads those among `paths`."""
        self._rules: dict[PurePosixPath, list[tuple[re.Pattern[str], dict[str, bool | str | None]]]] = {}
        for path in paths:
            if path.name == NAME:
                try:
                    rules = list(_parse(os.fsdecode(folder.read(path, _LONGEST))))
                except NotRegularError:
                    continue
                if rules:
                    self._rules[path.parent] = rules

    def of(self, path: PurePosixPath) -> Marks:
        """Returns the marks of a file, by its path below the folder."""
        found: dict[str, bool | str] = {}
        if not self._rules:
            return found
        unset: set[str] = set()
        for base in path.parents:
            if base not in self._rules:
                continue
            below = str(path.relative_to(base))
            for regex, marks in reversed(self._rules[base]):
                if marks.keys() <= found.keys() | unset or not regex.search(below):
                    continue
                for name, value in marks.items():
                    if name not in found and name not in unset:
                        if value is None:
                            unset.add(name)
                        else:
                            found[name] = value
        return found


def _parse(content: str) -> Iterable[tuple[re.Pattern[str], dict[str, bool | str | None]]]:
    for line in content.removeprefix("\ufeff").split("\n"):
        pattern, words = _pattern_of(line.strip())
        marks = {name: value for word in words for name, value in _mark(word)}
        if not pattern or not marks or pattern.startswith("!") or pattern.endswith("/"):
            continue
        try:
            regex, _ = GitIgnoreSpecPattern.pattern_to_regex(pattern)
        except ValueError:
            continue
        if regex is not None:
            yield re.compile(exactly(regex), re.DOTALL), marks


def _pattern_of(line: str) -> tuple[str, list[str]]:
    if not line or line.startswith(("#", "[attr]")):
        return "", []
    if line.startswith('"') and (end := line.find('"', 1)) > 0:
        return line[1:end], line[end + 1 :].split()
    pattern, *words = line.split()
    return pattern, words


def _mark(word: str) -> Iterable[tuple[str, bool | str | None]]:
    sign = word[0] if word[0] in "-!" else ""
    name, equals, value = word.removeprefix(sign).partition("=")
    if name in _REASONS:
        yield _REASONS[name], None if sign == "!" else sign != "-" and value.lower() not in _NO
    elif name == _LANGUAGE and equals and not sign:
        yield "language", value.replace("-", " ")
