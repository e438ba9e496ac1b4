"""Resolves Terraform's blocks of one folder by their address, and modules by the folder that `source` names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import PurePosixPath

from engine.data.imports.rules import MOST, Files, ImportRules, Repository, Strength, joined

_NO_CODE = re.compile(r"#[^\n]*|//[^\n]*|/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/)?")
_BLOCK = re.compile(
    r'(?m)^[ \t]*(variable|module|output|provider)[ \t]+"([^"\n]+)"'
    r'|^[ \t]*(resource|data|ephemeral)[ \t]+"([^"\n]+)"[ \t]+"([^"\n]+)"'
    r"|^(locals)[ \t]*\{"
)
_LOCAL = re.compile(r"(?m)^[ \t]+([\w-]+)[ \t]*=[^=]")
_SOURCE = re.compile(r'(?m)^[ \t]*source[ \t]*=[ \t]*"(\.{1,2}(?:/[^"\n]*)?)"')
_ADDRESS = re.compile(r"(?<![\w.-])((?:var|local|module)\.[\w-]+|data\.\w+\.[\w-]+|[a-z](?=\w*_\w)\w+\.[\w-]+)")
_VALUE = re.compile(r"(?m)^[ \t]*([\w-]+)[ \t]*=[^=]")


def scan(text: str, path: PurePosixPath) -> Iterator[str]:
    """Yields `=var.a` and the like for blocks, `~var.a` for addresses, `"../x` for the sources of modules."""
    code = _NO_CODE.sub(" ", text) if path.suffix != ".hcl" else ""
    if path.name.endswith(".tfvars"):
        yield from (f"~var.{name}" for name in dict.fromkeys(_VALUE.findall(code)))
        return
    defined = set()
    blocks = list(_BLOCK.finditer(code))
    for found, next_ in zip_longest(blocks, blocks[1:]):
        if found[6]:
            last = next_.start() if next_ is not None else len(code)
            end = code.find("\n}", found.end(), last)
            names = [f"local.{name}" for name in _LOCAL.findall(code, found.end(), end if end > 0 else last)]
        elif found[3]:
            names = [f"data.{found[4]}.{found[5]}" if found[3] == "data" else f"{found[4]}.{found[5]}"]
        else:
            names = [f"{'var' if found[1] == 'variable' else found[1]}.{found[2]}"]
        defined.update(names)
        yield from (f"={name}" for name in names)
    yield from (f'"{source}' for source in dict.fromkeys(_SOURCE.findall(code)))
    yield from (f"~{name}" for name in dict.fromkeys(_ADDRESS.findall(code)) if name not in defined)


class TerraformRules(ImportRules):
    """A folder is a module."""

    def __init__(self, files: Files, repository: Repository) -> None:
        self._folders: dict[str, list[int]] = defaultdict(list)
        self._defined: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, path in files:
            folder = str(path.parent)
            self._folders["" if folder == "." else folder].append(number)
            for word in repository.imports[number] if repository.imports else ():
                if word[0] == "=":
                    self._defined[folder, word[1:]].append(number)

    def _links(self, number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        folder = str(path.parent)
        for word in wanted:
            if word[0] == '"':
                for other in self._folders.get(joined(path.parent, word[1:]), ())[:MOST]:
                    yield other, Strength.IMPORT
            elif word[0] == "~":
                found = self._defined.get((folder, word[1:]), ())
                if number not in found:
                    yield from ((other, Strength.MENTION) for other in found[:MOST])
