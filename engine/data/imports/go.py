"""Resolves Go's packages by the module's path, and names within a package."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from engine.data.imports.names import code_of
from engine.data.imports.rules import MOST, Files, ImportRules, Repository, Strength

_COMMENT = r"//[^\n]*|/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/)?"
_IMPORT = re.compile(
    rf"(?m)^(?:package[ \t]+\w+[ \t]*;[ \t]*)?import\b[ \t]*(?:\(((?:[^)/\"]|\"[^\"\n]*\"?|{_COMMENT}|/)*)|([^\n(]*))"
)
_COMMENTS = re.compile(rf"{_COMMENT}|(\"[^\"\n]*\"?|`[^`]*`?)")
_QUOTED = re.compile(r'"([^"\n]+)"|`([^`\n]+)`')
_PACKAGE = re.compile(r"(?m)^package[ \t]+(\w+)")
_DEFINED = re.compile(r"(?m)^(?:func[ \t]+(\w+)|type[ \t]+(\w+)|(?:var|const)[ \t]+([\w, \t]+))")
_GROUP = re.compile(r"(?m)^(?:var|const|type)[ \t]*\(\n((?:(?!\))[^\n]*\n)*)")
_GROUPED = re.compile(r"(?m)^(?:\t|    )([A-Za-z_]\w*(?:,[ \t]*\w+)*)")
_WORD = re.compile(r"\.?[A-Za-z_]\w*")
_MODULE = re.compile(r"(?m)^[ \t]*module[ \t]+(?:\(\s*)?\"?([^\s\"()]+)")
_REPLACED = re.compile(
    r"(?m)^[ \t]*(?:replace[ \t]+)?\"?([^\s\"()=]+)\"?(?:[ \t]+v\S+)?[ \t]*=>[ \t]*\"?(\.\.?(?:/[^\s\"]*)?)\"?[ \t]*(?://.*)?$"
)
"A module that go.mod or go.work places in a folder of the same tree."
_RAW = re.compile(r"`[^`]*`?")


def scan(text: str) -> Iterator[str]:
    """Yields imported paths, `@name` of the package, `=name` for what is defined, and `~name` for what is mentioned."""
    for found in _IMPORT.finditer(text):
        named = _COMMENTS.sub(lambda each: each[1] or " ", found[1] or found[2] or "")
        for quoted in _QUOTED.finditer(named):
            yield quoted[1] or quoted[2]
    code = code_of(_RAW.sub(" ", text) if "`" in text else text)
    package = _PACKAGE.search(code)
    yield f"@{package[1] if package else ''}"
    defined = dict.fromkeys(_definitions(code))
    yield from (f"={name}" for name in defined)
    for word in dict.fromkeys(_WORD.findall(code)):
        if word[0] != "." and len(word) > 2 and word not in defined and word not in _KEYWORDS:
            yield f"~{word}"


def _definitions(code: str) -> Iterator[str]:
    for found in _DEFINED.finditer(code):
        for name in (found[1] or found[2] or found[3]).split(","):
            first = name.split()
            if first and first[0] not in ("_", "init", "main"):
                yield first[0]
    for group in _GROUP.finditer(code):
        for found in _GROUPED.finditer(group[1]):
            yield from (name.strip() for name in found[1].split(","))


_WORDS_OF_THE_LANGUAGE = """
append bool break byte cap case chan close complex const continue copy default defer delete else error fallthrough
false float32 float64 for func goto import int int16 int32 int64 int8 interface iota len make map new nil package
panic print println range real recover return rune select string struct switch true type uint uint16 uint32 uint64
uint8 var
"""
_KEYWORDS = frozenset(_WORDS_OF_THE_LANGUAGE.split())


class GoRules(ImportRules):
    """Folders below their module's root, whose path go.mod says; without one, below the root that most imports fit."""

    def __init__(self, files: Files, repository: Repository) -> None:
        files = list(files)
        self._by_folder: dict[str, list[int]] = defaultdict(list)
        self._defined: dict[tuple[str, str], list[int]] = defaultdict(list)
        said = repository.imports
        for number, path in files:
            folder = _folder(path)
            if not path.name.endswith("_test.go"):
                self._by_folder[folder].append(number)
            package = next((w for w in said[number] if w[0] == "@"), "@") if said else "@"
            for word in said[number] if said else ():
                if word[0] == "=" and (package.endswith("_test") or not path.name.endswith("_test.go")):
                    self._defined[folder + package, word[1:]].append(number)
                elif word[0] == "=":
                    self._defined[folder + package + "_test", word[1:]].append(number)
        self._modules: dict[str, str] = {}
        self._roots: set[str] = set()
        "Folders of modules."
        self._replaced: dict[str, dict[str, str]] = {}
        "Folder of a go.mod or go.work → what it places where, for the modules at and below it alone."
        for name, text in repository.manifests.items():
            manifest = PurePosixPath(name)
            if manifest.name == "go.mod" and (found := _MODULE.search(text)):
                self._modules[found[1]] = _folder(manifest)
                self._roots.add(_folder(manifest))
            for replaced in _REPLACED.finditer(text) if manifest.name in ("go.mod", "go.work") else ():
                folder = posixpath.normpath(posixpath.join(*manifest.parent.parts, replaced[2]))
                if not folder.startswith(".."):
                    places = self._replaced.setdefault(f"{manifest.name}:{_folder(manifest)}", {})
                    places[replaced[1]] = "" if folder == "." else folder
        if not (self._modules or self._replaced):
            self._modules = self._guess(files, said)

    def _guess(self, files: list[tuple[int, PurePosixPath]], said: Sequence[Sequence[str]]) -> dict[str, str]:
        votes: Counter[str] = Counter()
        for number, _ in files:
            for word in said[number] if said else ():
                if word[0] in "@=~":
                    continue
                parts = word.split("/")
                if "." not in parts[0]:
                    continue
                for first in range(1, len(parts)):
                    if "/".join(parts[first:]) in self._by_folder:
                        votes["/".join(parts[:first])] += 1
        return {max(votes, key=lambda each: (votes[each], -len(each))): ""} if votes else {}

    def _links(self, number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        folder = _folder(path)
        package = next((word for word in wanted if word[0] == "@"), "@")
        is_test = path.name.endswith("_test.go")
        replaced = self._replaced_for(path)
        for word in wanted:
            if word[0] == "~":
                found = self._defined.get((folder + package, word[1:]), ())
                if not found and is_test:
                    found = self._defined.get((folder + package + "_test", word[1:]), ())
                if number not in found:
                    # Several files with one name are built for different systems.
                    strength = Strength.MENTION if len(found) == 1 else Strength.GUESS
                    yield from ((other, strength) for other in found[:MOST])
            elif word[0] not in "@=":
                meant = self._folder_of(word, replaced)
                if meant is not None and (meant != folder or package.endswith("_test")):
                    yield from ((other, Strength.IMPORT) for other in self._by_folder.get(meant, ())[:MOST])

    def _replaced_for(self, path: PurePosixPath) -> dict[str, str]:
        """Returns what is placed elsewhere for a file: go.work goes before its own module's go.mod."""
        if not self._replaced:
            return {}
        folders = ["/".join(folder.parts) for folder in path.parents]
        module = next((folder for folder in folders if folder in self._roots), "")
        work = next((found for one in folders if (found := self._replaced.get(f"go.work:{one}"))), {})
        return {**self._replaced.get(f"go.mod:{module}", {}), **work}

    def _folder_of(self, wanted: str, replaced: dict[str, str]) -> str | None:
        parts = wanted.split("/")
        for count in range(len(parts), 0, -1):
            name = "/".join(parts[:count])
            root = replaced.get(name, self._modules.get(name))
            if root is not None:
                folders = [*filter(None, (root,)), *parts[count:]]
                below = (
                    "/".join(folders[:last]) for last in range(len(folders), len(folders) - len(parts) + count, -1)
                )
                # A folder with a go.mod of its own is no part of the module around it.
                return None if any(folder in self._roots for folder in below) else "/".join(folders)
        return None


def _folder(path: PurePosixPath) -> str:
    return "/".join(path.parent.parts)
