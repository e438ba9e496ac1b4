"""Resolves languages without imports of files: who mentions a name needs the file that defines it.

A file says, in words that begin with a sign: `@a.b` its namespace, `=C` a name that it defines, `+a.b.C` a full name
that it imports (`+a.b.*` all of a namespace), `<C` a class that it extends, `~C` a name that it mentions, and `-C` a
name that it mentions as a member.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from engine.data.imports.rules import MOST, Files, ImportRules, Repository, Strength, shared

_SEVERAL = 8
"Files that may define one name for it to count; a name of more is everybody's."
_NO_CODE = re.compile(
    r'//[^\n]*|/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/)?|"""[^"]*(?:"(?!"")[^"]*)*(?:""")?|"(?:[^"\\\n]|\\.)*"?'
    r"|'(?:[^'\\\n]|\\[^\n]{1,6})'"
)
_WORD = re.compile(r"[.@]?[A-Za-z_]\w*")
_CALLED = re.compile(r"[.@]?\b[a-z_]\w*(?=\()")
WORDS = re.compile(r"[A-Za-z_]\w*")


def code_of(text: str) -> str:
    """Removes comments and strings from a text, as the languages with C's signs write them."""
    return _NO_CODE.sub(" ", text)


def mentions(code: str, defined: Iterable[str], *, capital: bool) -> Iterator[str]:
    """Yields `~C` of each word; `-C` of those that only follow a dot, and of small ones that are not called.

    Args:
        code: Without comments.
        defined: Words that mean what the file defines itself.
        capital: Whether only words with a capital letter count.
    """
    words = dict.fromkeys(_WORD.findall(code))
    called = frozenset() if capital else frozenset(_CALLED.findall(code))
    own = set(defined)
    for word in words:
        member, name = word[0] == ".", word.lstrip(".@")
        if name in own or len(name) < 2 or (member and name in words):
            continue
        if name[0].isupper():
            yield f"{'-' if member else '~'}{name}"
        elif not capital and (not member or word in called):
            yield f"{'~' if word in called or word[0] == '@' else '-'}{name}" if not member else f"-{name}"


class NamesRules(ImportRules):
    """Names by their namespace, visible where a language makes them so."""

    outer_visible = False
    "Whether a namespace sees those around it."
    namespaces = True
    "Whether a name has to be made visible."

    def __init__(self, files: Files, repository: Repository) -> None:
        self._folders: dict[int, tuple[str, ...]] = {}
        self._namespace: dict[int, str] = {}
        self._defined: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._in_namespace: dict[str, list[int]] = defaultdict(list)
        self._everywhere: set[str] = set()
        for number, path in files:
            said = repository.imports[number] if repository.imports else ()
            own = next((word[1:] for word in said if word[0] == "@"), "")
            self._folders[number], self._namespace[number] = path.parent.parts, own
            self._in_namespace[own].append(number)
            namespace = own
            for word in said:
                if word[0] == "@":
                    namespace = word[1:]
                elif word[0] == "=":
                    self._defined[word[1:]].append((namespace, number))
                elif word.startswith("++"):
                    self._everywhere.add(word[2:].removesuffix(".*"))

    def _links(self, number: int, _path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        visible = self._visible(number, wanted)
        for word in wanted:
            if word[0] == "+":
                yield from self._import(number, word.lstrip("+"))
            elif word[0] in "<~-":
                yield from self._mention(number, word, visible)

    def _visible(self, number: int, wanted: Sequence[str]) -> set[str]:
        own = [word[1:] for word in wanted if word[0] == "@"] or [self._namespace.get(number, "")]
        visible = {*own, *self._everywhere}
        if self.outer_visible:
            visible |= {outer for each in own for outer in _outer(each)}
        return visible | {word.lstrip("+")[:-2] for word in wanted if word[0] == "+" and word.endswith(".*")}

    def _import(self, number: int, name: str) -> Iterator[tuple[int, Strength]]:
        if name.endswith(".*"):
            namespace = name[:-2]
            found = self._full(number, namespace)
            if found:
                yield from found
                return
            for other in self._in_namespace.get(namespace, ())[:MOST]:
                yield other, Strength.GUESS
            return
        yield from self._full(number, name)

    def _full(self, number: int, name: str) -> list[tuple[int, Strength]]:
        """Returns the files that define a full name, or what it is a member of."""
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            namespace = ".".join(parts[: count - 1])
            found = [other for space, other in self._defined.get(parts[count - 1], ()) if space == namespace]
            if found:
                return list(self._nearest(number, found, Strength.IMPORT))
        return []

    def _mention(self, number: int, word: str, visible: set[str]) -> Iterator[tuple[int, Strength]]:
        defined = self._defined.get(word[1:])
        if not defined:
            return
        strength = {"<": Strength.BASE, "~": Strength.MENTION, "-": Strength.GUESS}[word[0]]
        if self.namespaces:
            seen = [other for space, other in defined if space in visible]
            if not seen and len(defined) == 1:
                yield defined[0][1], Strength.GUESS
                return
        else:
            seen = [other for _, other in defined]
        yield from self._nearest(number, seen, strength)

    def _nearest(self, number: int, found: Sequence[int], strength: Strength) -> Iterator[tuple[int, Strength]]:
        """Yields the nearest file with its strength, and others as guesses."""
        files = list(dict.fromkeys(found))
        if not files or number in files or len(files) > _SEVERAL:
            return
        if len(files) == 1:
            yield files[0], strength
            return
        folder = self._folders[number]
        near = {other: shared(folder, self._folders[other]) for other in files}
        most = max(near.values())
        nearest = [other for other in files if near[other] == most]
        for other in files:
            # The nearest of several is the likely one, but not a sure one.
            yield other, Strength(max(strength - 1, Strength.GUESS)) if nearest == [other] else Strength.GUESS


def _outer(namespace: str) -> Iterator[str]:
    while namespace:
        namespace = namespace.rpartition(".")[0]
        yield namespace
