"""Resolves Perl's packages: whoever uses, inherits or calls one needs the file that holds it.

A file says, in words that begin with a sign: `=A::B` a package that it holds, `+A::B` one that it uses, `~A::B` one
that it calls, and `/a/b.pl` a file that it requires.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from engine.data.imports.rules import MOST, Files, ImportRules, Repository, Strength, Tails, joined, shared

_NAME = r"[A-Za-z_]\w*(?:::\w+)*"
_POD = re.compile(r"^=[a-zA-Z].*?(?:^=cut\b[^\n]*|\Z)", re.MULTILINE | re.DOTALL)
_END = re.compile(r"^__(?:END|DATA)__\b", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|(?<=\s))#[^\n]*", re.MULTILINE)
_PACKAGE = re.compile(rf"^[ \t]*(?:package|class|role)[ \t]+({_NAME})[^\n;{{]*[;{{\n]", re.MULTILINE)
_USE = re.compile(rf"(?:^|[;{{}}])[ \t]*(?:use|no|require)[ \t]+({_NAME})(?!\w)", re.MULTILINE)
_PARENT = re.compile(r"\b(?:use[ \t]+(?:parent|base|Mojo::Base)|extends|with)\b([^;\n]{0,500})")
_REQUIRE = re.compile(r"\b(?:require|do)[ \t]*\(?[ \t]*(?:\"|')([\w./-]+\.p[lmh])(?:\"|')")
_CALLED = re.compile(rf"(?<![\w:$@%&'\"])({_NAME}::\w+|[A-Z]\w*)(?:::)?[ \t]*(?:->|\()")
_PLURAL = re.compile(_NAME)


def scan(text: str) -> Iterator[str]:
    """Yields the packages that a file holds and those that it needs."""
    if (end := _END.search(text)) is not None:
        text = text[: end.start()]
    code = _COMMENT.sub("", _POD.sub("", text) if "\n=" in f"\n{text}" else text)
    yield from (f"={name}" for name in _PACKAGE.findall(code))
    yield from (f"+{name}" for name in _USE.findall(code))
    for names in _PARENT.findall(code):
        yield from (f"+{name}" for name in _PLURAL.findall(names) if name[0].isupper())
    yield from (f"/{path}" for path in _REQUIRE.findall(code))
    for name in dict.fromkeys(_CALLED.findall(code)):
        yield f"~{name}"
        if "::" in name:  # a function of the package
            yield f"~{name.rpartition('::')[0]}"


class PerlRules(ImportRules):
    """Packages by their full names, of several holders the one whose path is the name; files by their paths."""

    def __init__(self, files: Files, repository: Repository) -> None:
        files = list(files)
        self._tails = Tails(files)
        self._paths = dict(files)
        self._by_path = {str(path): number for number, path in files}
        self._holders: dict[str, list[int]] = defaultdict(list)
        for number, _ in files:
            for word in repository.imports[number] if repository.imports else ():
                if word[0] == "=":
                    self._holders[word[1:]].append(number)

    def _links(self, _number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        own = {word[1:] for word in wanted if word[0] == "="}
        for word in wanted:
            sign, name = word[0], word[1:]
            if sign == "/":
                target = joined(path.parent, name)
                found = self._by_path.get(target, self._by_path.get(joined(PurePosixPath(), name)))
                found = self._tails.nearest(name, path.parent) if found is None else found
                if found is not None:
                    yield found, Strength.IMPORT
            elif sign in "+~" and name not in own and (holder := self._holder(name, path)) is not None:
                yield holder, Strength.IMPORT if sign == "+" else Strength.MENTION

    def _holder(self, name: str, path: PurePosixPath) -> int | None:
        holders = self._holders.get(name, ())
        if not holders or len(holders) > MOST:
            return None
        tail = tuple(f"{name.replace('::', '/')}.pm".split("/"))
        named = [each for each in holders if self._paths[each].parts[-len(tail) :] == tail]
        if not named and len(holders) > 1:
            return None
        return max(
            named or holders, key=lambda each: (shared(path.parent.parts, self._paths[each].parent.parts), -each)
        )
