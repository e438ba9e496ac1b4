"""Resolves Elixir's modules: whoever uses, imports or calls one needs the file that defines it.

A file says, in words that begin with a sign: `=A.B` a module that it defines, `+A.B` one that is compiled into it
(`use`, `import`, `require`, a behaviour, a struct, a protocol), and `~A.B` one that it mentions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from engine.data.imports.rules import MOST, Files, ImportRules, Repository, Strength, shared

_NO_CODE = re.compile(
    r"\?[\"'#\\]|\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)|\"(?:[^\"\\]|\\.)*(?:\"|\Z)|'(?:[^'\\\n]|\\.)*'?|#[^\n]*",
    re.DOTALL,
)
_DEEPEST = 12
"Modules within modules that are followed."
_MODULE = r"(?:__MODULE__\.)?[A-Z]\w*(?:\.[A-Z]\w*)*"
_DEFINED = re.compile(rf"^([ \t]*)def(?:module|protocol)[ \t(]+({_MODULE})", re.MULTILINE)
_ALIAS = re.compile(rf"\balias[ \t(]+({_MODULE})(?:\.\{{([^}}]{{0,2000}})\}})?(?:[ \t)]*,[ \t\n]*as:[ \t]*([A-Z]\w*))?")
_GROUP = re.compile(rf"\b(?:use|import|require)[ \t(]+({_MODULE})\.\{{([^}}]{{0,2000}})\}}")
_COMPILED = re.compile(
    rf"(?:\b(?:use|import|require|defimpl)[ \t(]+|@(?:behaviour|derive)[ \t(]+\[?|%)({_MODULE})(?!\.\{{)"
)
_WORD = re.compile(rf"(?<![\w.@:]){_MODULE}")


def scan(text: str) -> Iterator[str]:
    """Yields the modules that a file defines and uses, by their full names."""
    code = _NO_CODE.sub(" ", text)
    opened: list[tuple[int, str]] = []
    aliases: dict[str, str] = {}
    defined: list[str] = []
    for found in _DEFINED.finditer(code):
        depth = len(found[1].expandtabs())
        while opened and (opened[-1][0] >= depth or len(opened) > _DEEPEST):
            opened.pop()
        outer = opened[-1][1] if opened else ""
        name = found[2].replace("__MODULE__.", "")
        full = f"{outer}.{name}" if outer else name
        if outer:  # its first part is an alias within the outer module
            first = name.partition(".")[0]
            aliases.setdefault(first, f"{outer}.{first}")
        opened.append((depth, full))
        defined.append(full)
        yield f"={full}"
    own = defined[0] if defined else ""

    def full_name(name: str) -> str:
        name = name.replace("__MODULE__", own)
        first, dot, rest = name.partition(".")
        return f"{aliases.get(first, first)}{dot}{rest}"

    for found in _ALIAS.finditer(code):
        for name, short in _several(found[1], found[2], found[3]):
            full = full_name(name)
            aliases[short] = full
            yield f"~{full}"
    for found in _GROUP.finditer(code):
        yield from (f"+{full_name(name)}" for name, _ in _several(found[1], found[2], None))
    for name in dict.fromkeys(_COMPILED.findall(code)):
        yield f"+{full_name(name)}"
    for name in dict.fromkeys(_WORD.findall(code)):
        yield f"~{full_name(name)}"


def _several(name: str, group: str | None, short: str | None) -> Iterator[tuple[str, str]]:
    """Yields each module of an alias, with the name that it goes by."""
    if group is None:
        yield name, short or name.rpartition(".")[2]
        return
    for part in re.findall(r"[A-Z][\w.]*", group):
        yield f"{name}.{part}", part.rpartition(".")[2]


class ElixirRules(ImportRules):
    """Modules by their full names."""

    def __init__(self, files: Files, repository: Repository) -> None:
        self._folders: dict[int, tuple[str, ...]] = {}
        self._defined: dict[str, list[int]] = defaultdict(list)
        for number, path in files:
            self._folders[number] = path.parent.parts
            for word in repository.imports[number] if repository.imports else ():
                if word[0] == "=":
                    self._defined[word[1:]].append(number)

    def _links(self, number: int, _path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        own = {word[1:] for word in wanted if word[0] == "="}
        for word in wanted:
            files = self._defined.get(word[1:], ())
            if word[0] == "=" or not files or word[1:] in own or len(files) > MOST:
                continue
            strength = Strength.IMPORT if word[0] == "+" else Strength.MENTION
            if len(files) == 1:
                yield files[0], strength
                continue
            folder = self._folders[number]
            nearest = max(files, key=lambda other: (shared(folder, self._folders[other]), -other))
            for other in files:
                yield other, Strength.MENTION if other == nearest else Strength.GUESS
