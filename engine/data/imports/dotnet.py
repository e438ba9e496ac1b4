"""Resolves C#'s types by their namespace, made visible by `using`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.imports.names import WORDS, NamesRules, code_of, mentions

_NAMESPACE = re.compile(r"\bnamespace\s+([\w.]+)")
_USING = re.compile(r"(?m)^[ \t]*(global\s+)?using\s+(static\s+)?(?:\w+\s*=\s*)?([A-Za-z_][\w.]*)\s*(?:<[^;\n]*)?;")
_TYPE = re.compile(
    r"\b(?:class|struct|interface|enum|record(?:\s+(?:class|struct))?)\s+([A-Z_]\w*)([^{;]*)"
    r"|\bdelegate\s+[\w<>\[\],.? ]{1,200}?\b([A-Z_]\w*)\s*(?:<[^>(;]*>)?\s*\("
)


def scan(text: str) -> Iterator[str]:
    """Yields what a file of C# says of names (engine.data.imports.names)."""
    code = code_of(text)
    for found in _USING.finditer(code):
        # A namespace, a class whose members are meant, or an alias: all of them are tried.
        yield f"{'++' if found[1] else '+'}{found[3]}.*"
    spaces = [(found.start(), found[1]) for found in _NAMESPACE.finditer(code)]
    defined: list[str] = []
    for found in _TYPE.finditer(code):
        while spaces and spaces[0][0] < found.start():
            yield f"@{spaces.pop(0)[1]}"
        name = found[1] or found[3]
        defined.append(name)
        yield f"={name}"
        bases = (found[2] or "").partition(":")[2].partition(" where ")[0]
        yield from (f"<{base}" for base in WORDS.findall(bases) if base[0].isupper() and len(base) > 1)
    yield from (f"@{space}" for _, space in spaces)
    yield from mentions(code, defined, capital=True)


class DotNetRules(NamesRules):
    """Types of C#."""

    outer_visible = True
