"""Resolves Dart's imports, exports and parts, by path and by the packages of the repository's pubspec.yaml files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, joined, shared

# Strings are matched so that a URL's slashes begin no comment.
_COMMENT = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|\Z)|'''.*?(?:'''|\Z)|\"\"\".*?(?:\"\"\"|\Z)"
    r"|('(?:[^'\\\n]|\\.)*'?|\"(?:[^\"\\\n]|\\.)*\"?)",
    re.DOTALL,
)
# `part of` leads from a part to its library, which needs the part.
_DIRECTIVE = re.compile(r"(?:\A|[\n;])[ \t\r]*(?:import|export|part)\s+(?:augment\s+)?(['\"][^;]{0,4000});")
_URI = re.compile(r"['\"]([^'\"\n]+)['\"]")
_NAME = re.compile(r"^name:[ \t]*['\"]?(\w+)", re.MULTILINE)


def scan(text: str) -> Iterator[str]:
    """Yields the URIs of all directives, of conditional imports every one."""
    code = _COMMENT.sub(lambda found: found[1] or " ", text)
    pending = 0
    while (found := _DIRECTIVE.search(code, pending)) is not None:
        yield from (uri for uri in _URI.findall(found[1]) if not uri.startswith("dart:"))
        pending = found.end() - 1  # its semicolon may begin the next one


class DartRules(ImportRules):
    """Paths from the file's folder; `package:a/b.dart` is lib/b.dart of the package a."""

    def __init__(self, files: Files, repository: Repository) -> None:
        self._by_path = {str(path): number for number, path in files}
        self._packages: dict[str, list[PurePosixPath]] = {}
        for name, text in sorted(repository.manifests.items(), key=lambda item: (item[0].count("/"), item[0])):
            path = PurePosixPath(name)
            if path.name == "pubspec.yaml" and (found := _NAME.search(text)):
                self._packages.setdefault(found[1], []).append(path.parent)

    def _meant(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        scheme, colon, rest = wanted.partition(":")
        if not colon:
            target = joined(path.parent, wanted)
        elif scheme == "package" and (package := rest.partition("/"))[0] in self._packages:
            # Examples bring packages of the same name: the nearest one is meant.
            found = max(self._packages[package[0]], key=lambda folder: shared(path.parts, folder.parts))
            target = joined(found / "lib", package[2])
        else:
            return
        if target in self._by_path:
            yield self._by_path[target]
