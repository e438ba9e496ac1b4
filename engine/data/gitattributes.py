"""Reads from .gitattributes files which files are generated, vendored or documentation, and their language.

Each file's rules hold for its folder and those below; the nearest file with an opinion decides, within it the last
line. The attributes are those of GitHub's linguist, which people set so that others' code does not count as theirs. A
word that is no attribute, as in `gen/** linguist-generated # by protoc`, leaves the line's others, as for libgit2, with
which linguist reads them; git itself passes over the whole line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from engine.data.gitignore import bytewise, pattern_to_regex
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
_KNOWN = frozenset({*_REASONS, _LANGUAGE})
_NO = frozenset({"false", "no", "0", "off"})

Marks = Mapping[str, bool | str]
'Reason → whether a file is marked as such; "language" → the name of its language.'


_Said = tuple[str, bool | str | None]
"An attribute and its value; None takes back what rules before said."
_Rules = list[tuple[re.Pattern[str], list[_Said]]]
_MACRO = "[attr]"
_ESCAPED = re.compile(r"\\([0-7]{3}|.)")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_BLANK = " \t\r\n"
"What stands between words: no other white space does."
_WORDS = re.compile(f"[^{_BLANK}]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\[abfnrtv"\\]|\\[0-3][0-7]{2})*)"')
"With other escapes, quotation marks are a part of the pattern."
_FIRST = PurePosixPath(".git/info/attributes")
"What git reads before all else."


class Attributes:
    """The .gitattributes files of one folder, of those below, and of those above up to the top of its work tree."""

    def __init__(self, folder: Folder, paths: Iterable[PurePosixPath]) -> None:
        """Reads those among `paths`, and those above the folder."""
        root = Path(folder.root)
        tree = (root, *root.parents)
        top = next((place for place in tree if os.path.lexists(place / ".git")), root)
        own = [_lines(Folder(str(top)), path) for path in (_FIRST, PurePosixPath(NAME))]
        # git knows macros of the top alone, wherever they are used.
        self._macros = dict(_macro(words) for lines in reversed(own) for pattern, words in lines if pattern == _MACRO)
        self._of_folder: dict[PurePosixPath, _Rules] = {}
        for path in paths:
            if path.name == NAME and path.parent.parts and (rules := self._rules(_lines(folder, path))):
                self._of_folder[path.parent] = rules
        above = [_lines(Folder(str(place)), PurePosixPath(NAME)) for place in tree[: tree.index(top)]]
        places = [(top, own[0]), *zip(tree, above, strict=False), (top, own[1])]
        read = [("/".join(root.relative_to(place).parts), self._rules(lines)) for place, lines in places]
        self._all = read
        self._is_empty = not (self._of_folder or any(rules for _, rules in read))

    def _rules(self, lines: Iterable[tuple[str, list[str]]]) -> _Rules:
        found: _Rules = []
        for pattern, words in lines:
            said = [each for word in words if (each := _said(word))[0] in _KNOWN or each[0] in self._macros]
            if said and pattern != _MACRO and not pattern.startswith("!") and not pattern.endswith("/"):
                # Within quotation marks # begins no comment.
                regex, _ = pattern_to_regex("\\" * pattern.startswith("#") + bytewise(pattern))
                if regex is not None:
                    found.append((regex, said))
        return found

    def of(self, path: PurePosixPath) -> Marks:
        """Returns the marks of a file, by its path below the folder."""
        if self._is_empty:
            return {}
        below = [
            (str(path.relative_to(base)), self._of_folder[base]) for base in path.parents if base in self._of_folder
        ]
        first, *outer = [(f"{folder}/{path}" if folder else str(path), rules) for folder, rules in self._all]
        found: dict[str, bool | str | None] = {}
        for path_text, rules in (first, *below, *outer):
            name = bytewise(path_text)
            for regex, said in reversed(rules):
                if not all(attribute in found for attribute, _ in said) and regex.search(name):
                    self._take(said, found)
        return _marks(found)

    def _take(self, said: Iterable[_Said], found: dict[str, bool | str | None]) -> None:
        """Notes what a rule says of attributes that no rule before it speaks of, and what macros stand for."""
        for attribute, value in reversed(list(said)):
            if attribute not in found:
                found[attribute] = value
                if value is True:
                    self._take(self._macros.get(attribute, ()), found)


def _marks(found: Mapping[str, bool | str | None]) -> Marks:
    made: dict[str, bool | str] = {}
    for attribute, reason in _REASONS.items():
        value = found.get(attribute)
        if value is not None and reason not in made:
            made[reason] = value if isinstance(value, bool) else value.lower() not in _NO
    language = found.get(_LANGUAGE)
    if isinstance(language, str):
        made["language"] = language.replace("-", " ")
    return made


def _lines(folder: Folder, path: PurePosixPath) -> list[tuple[str, list[str]]]:
    """Returns the pattern and the words of each line of a file; `[attr]` and a macro's name before its words."""
    try:
        content = os.fsdecode(folder.read(path, _LONGEST))
    except NotRegularError:
        return []
    found = []
    for line in (each.strip(_BLANK) for each in content.removeprefix("\ufeff").split("\n")):
        if line.startswith(_MACRO):
            found.append((_MACRO, _WORDS.findall(line.removeprefix(_MACRO))))
        elif quoted := _QUOTED.match(line):
            found.append((_unquoted(quoted[1]), _WORDS.findall(line[quoted.end() :])))
        elif line and not line.startswith("#"):
            pattern, *words = _WORDS.findall(line)
            found.append((pattern, words))
    return found


def _macro(words: list[str]) -> tuple[str, list[_Said]]:
    return (words[0] if words else "", list(map(_said, words[1:])))


def _unquoted(text: str) -> str:
    """Reads the escapes of C, of which each number is a byte."""
    content = b""
    end = 0
    for found in _ESCAPED.finditer(text):
        code = found[1]
        content += os.fsencode(text[end : found.start()])
        content += bytes([int(code, 8) & 255]) if len(code) == 3 else os.fsencode(_ESCAPES.get(code, code))
        end = found.end()
    return os.fsdecode(content + os.fsencode(text[end:]))


def _said(word: str) -> _Said:
    sign = word[0] if word[0] in "-!" else ""
    name, equals, value = word.removeprefix(sign).partition("=")
    if sign:
        return name, None if sign == "!" else False
    return name, value if equals else True
