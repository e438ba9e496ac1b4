"""Resolves PHP's classes by their full name, as PSR-4 has them, and required files by their path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from engine.data.imports.names import WORDS, NamesRules
from engine.data.imports.rules import Files, Repository, Strength, joined

_NO_CODE = re.compile(
    r"//[^\n]*|\#(?!\[)[^\n]*|/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/)?|'[^'\\\n]*(?:\\.[^'\\\n]*)*'?"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"?',
    re.DOTALL,
)
_NAMESPACE = re.compile(r"(?m)^[ \t]*(?:<\?php[ \t]+)?namespace[ \t]+([\w\\]+)[ \t]*[;{]")
_USE = re.compile(r"(?m)^use[ \t]+(?:(?:function|const)[ \t]+)?([^;(]*);")
_TYPE = re.compile(
    r"(?m)^[ \t]*(?:(?:abstract|final|readonly)\s+)*(?:class|interface|trait|enum)\s+([A-Za-z_]\w*)([^{]*)"
)
_FUNCTION = re.compile(r"(?m)^[ \t]*function[ \t]+&?(\w+)")
_TRAITS = re.compile(r"(?m)^[ \t]+use[ \t]+([\w\\, ]+)[;{]")
_WORD = re.compile(r"(?:\$|->|::|\\)?[A-Za-z_]\w*(?:\\\w+)*")
_REQUIRED = re.compile(
    r"\b(?:require|include)(?:_once)?[ \t(]+((?:__DIR__|dirname\([^)\n]*\))?[ \t.]*)['\"]([^'\"\n]+)['\"]"
)


def scan(text: str) -> Iterator[str]:
    """Yields what a file of PHP says of names (engine.data.imports.names), with dots; `"x.php` for a required file."""
    code = _NO_CODE.sub(" ", text)
    namespace = next((found[1].replace("\\", ".") for found in _NAMESPACE.finditer(code)), "")
    yield f"@{namespace}"
    aliases: dict[str, str] = {}
    for found in _USE.finditer(code):
        for name, alias in _used(found[1]):
            aliases[alias] = name
            yield f"+{name}"
    defined = []
    bases: list[str] = []
    for found in _TYPE.finditer(code):
        defined.append(found[1])
        bases += WORDS.findall(found[2].replace("extends", " ").replace("implements", " "))
    defined += [found[1] for found in _FUNCTION.finditer(code)]
    yield from (f"={name}" for name in defined)
    for found in _TRAITS.finditer(code):
        bases += WORDS.findall(found[1])
    own = set(defined)
    yield from (f"<{name}" for name in bases if name not in own and name not in aliases)
    for word in dict.fromkeys(_WORD.findall(code)):
        if word[0] == "\\":
            yield f"+{word[1:].replace(chr(92), '.')}"
        elif word[0] not in "$-:":
            head, slash, rest = word.partition("\\")
            if slash:
                begin = aliases.get(head) or (f"{namespace}.{head}" if namespace else head)
                yield f"+{begin}.{rest.replace(chr(92), '.')}"
            elif head not in own and head not in aliases and len(head) > 2:
                yield f"~{head}"
    for found in _REQUIRED.finditer(text):
        yield f'"{found[2]}'


def _used(clause: str) -> Iterator[tuple[str, str]]:
    """Yields full names and their aliases of a `use`, groups written out."""
    head, brace, rest = clause.partition("{")
    for item in (rest.partition("}")[0] if brace else clause).split(","):
        words = re.sub(r"^\s*(?:function|const)\s", "", item).split()
        if words:
            name = f"{head.strip()}{words[0]}" if brace else words[0]
            name = name.strip("\\").replace("\\", ".")
            yield name, words[2] if len(words) == 3 else name.rpartition(".")[2]


class PhpRules(NamesRules):
    """Names by their namespace; paths as `require` has them."""

    def __init__(self, files: Files, repository: Repository) -> None:
        files = list(files)
        super().__init__(files, repository)
        self._by_path = {str(path): number for number, path in files}

    def _links(self, number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        yield from super()._links(number, path, wanted)
        for word in wanted:
            if word[0] == '"':
                found = self._by_path.get(joined(path.parent, word[1:]))
                if found is None:
                    found = self._by_path.get(joined(PurePosixPath(), word[1:]))
                if found is not None:
                    yield found, Strength.IMPORT
