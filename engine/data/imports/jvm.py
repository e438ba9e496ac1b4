"""Resolves Java, Kotlin, Scala and Groovy as one family, because they import each other's classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath

from engine.data.imports.names import WORDS, NamesRules, code_of, mentions

_PACKAGE = re.compile(r"(?m)^[ \t]*package[ \t]+(?!object\b)([\w.`]+)")
_IMPORT = re.compile(r"(?m)^[ \t]*import[ \t]+(?:static[ \t]+)?([\w.`$*]+)(?:[ \t]+as[ \t]+\w+)?")
_SCALA_IMPORT = re.compile(r"(?m)^[ \t]*import[ \t]+([^\n{]*(?:\{[^}]*\}?)?)")
_JAVA_TYPE = re.compile(r"\b(?:class|interface|enum|record)\s+([A-Za-z_]\w*)")
_JAVA_BASES = re.compile(r"\b(?:extends|implements|permits)\s+([^{;()]*)")
_KOTLIN_TYPE = re.compile(r"\b(?:class|interface|object|typealias)[ \t]+`?([A-Za-z_]\w*)")
_KOTLIN_MEMBER = re.compile(
    r"\n(?:[a-z]+[ \t]+){0,6}?(?:fun|va[lr])[ \t]+(?:<[^\n(]*?>[ \t]+)?((?:[\w<>?*,.]|(?<=,)[ \t])*)"
)
_KOTLIN_BASES = re.compile(r"(?:\b(?:class|interface|object)\b[^\n{}]{0,400}?|\n[ \t]*\)[ \t]*):[ \t]*([A-Z][^\n{]*)")
_KOTLIN_FILE = re.compile(r'@file:\s*JvmName\(\s*(?:name\s*=\s*)?"(\w+)"')
_SCALA_TYPE = re.compile(r"\b(?:class|trait|object|enum|type)[ \t]+([A-Za-z_]\w*)")
_SCALA_BASES = re.compile(r"\b(?:extends|with)\s+([^\n{]*)")
_SCALA_MEMBER = re.compile(r"\n(?:(?:inline|implicit|lazy|final|private|given)[ \t]+){0,3}(?:def|va[lr])[ \t]+(\w+)")
_SCALA_OBJECT = re.compile(r"\bpackage[ \t]+object[ \t]+(\w+)")
_QUALIFIED = re.compile(r"(?<![\w.])(?:[a-z]\w*\.)+[A-Z]\w*")
_DEEPEST = 8
"Packages within packages."
_LONGEST = 4000
"Characters of an import that is taken apart."
_LOWER_CASE_TOO = frozenset({"Kotlin", "Scala"})
"Their functions stand in no class."


def scan(text: str, language: str, path: PurePosixPath) -> Iterator[str]:
    """Yields what a file says of names (engine.data.imports.names)."""
    code = "\n" + code_of(text)
    packages = [found[1].replace("`", "") for found in islice(_PACKAGE.finditer(code), _DEEPEST)]
    package = ".".join(packages) if language == "Scala" else (packages or [""])[0]
    yield f"@{package}"
    if language == "Scala" and len(packages) > 1:
        yield from (f"+{'.'.join(packages[:count])}.*" for count in range(1, len(packages)))
    defined = dict.fromkeys(_definitions(code, text, language, path))
    yield from (f"={name}" for name in defined)
    if language == "Scala":
        yield from _scala_imports(code, package)
        for found in _SCALA_OBJECT.finditer(code):
            # What it holds is seen in the package of its name, to which the file belongs too.
            yield f"@{f'{package}.{found[1]}' if package else found[1]}"
            yield from (f"={name}" for name in defined)
    else:
        yield from (f"+{found[1].replace('`', '')}" for found in _IMPORT.finditer(code))
    bases = {"Scala": _SCALA_BASES, "Kotlin": _KOTLIN_BASES}.get(language, _JAVA_BASES)
    for found in bases.finditer(code):
        yield from (f"<{word}" for word in WORDS.findall(found[1]) if word[0].isupper() and word not in defined)
    yield from (f"+{name}" for name in dict.fromkeys(_QUALIFIED.findall(code)))
    yield from mentions(code, defined, capital=language not in _LOWER_CASE_TOO)


def _definitions(code: str, text: str, language: str, path: PurePosixPath) -> Iterator[str]:
    if language == "Kotlin":
        yield from (found[1] for found in _KOTLIN_TYPE.finditer(code))
        members = [found[1].rpartition(".")[2] for found in _KOTLIN_MEMBER.finditer(code)]
        yield from filter(str.isidentifier, members)
        if members:
            named = _KOTLIN_FILE.search(text)
            yield named[1] if named else f"{path.stem[:1].upper()}{path.stem[1:]}Kt"
    elif language == "Scala":
        yield from (found[1] for found in _SCALA_TYPE.finditer(code))
        yield from (found[1] for found in _SCALA_MEMBER.finditer(code))
    else:
        yield from (found[1] for found in _JAVA_TYPE.finditer(code))


def _scala_imports(code: str, package: str) -> Iterator[str]:
    for found in _SCALA_IMPORT.finditer(code):
        for clause in [] if len(found[1]) > _LONGEST else re.split(r",(?![^{]*\})", found[1]):
            head, brace, rest = clause.strip().partition("{")
            names = rest.rstrip("} \t\n").split(",") if brace else [""]
            for name in names:
                first = re.split(r"=>|\bas\b", name)[0].strip()
                full = re.sub(r"[\s`]", "", head + first)
                full = re.sub(r"\.(?:_|given)$", ".*", full)
                if full:
                    yield f"+{full}"
                    if package and full[0].islower():
                        # An import may begin within the file's own package.
                        yield f"+{package}.{full}"


class JvmRules(NamesRules):
    """Classes, and functions outside of classes, by their package."""

    outer_visible = False
