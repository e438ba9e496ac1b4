"""Resolves Swift, where the files of a module see each other without imports."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.imports.names import WORDS, NamesRules, code_of, mentions

_TYPE = re.compile(r"\b(class|struct|enum|protocol|actor|extension)\s+([A-Z]\w*)(?:\.[\w.]+)?([^{]*)")
_OTHER = re.compile(r"\b(?:typealias|macro)\s+([A-Z]\w*)|\n(?:(?:public|internal|private|fileprivate)\s+)?func\s+(\w+)")


def scan(text: str) -> Iterator[str]:
    """Yields what a file of Swift says of names (engine.data.imports.names)."""
    code = "\n" + code_of(text)
    defined: list[str] = []
    for found in _TYPE.finditer(code):
        if found[1] == "extension":
            yield f"<{found[2]}"
        else:
            defined.append(found[2])
            yield f"={found[2]}"
        bases = found[3].partition(":")[2].partition(" where ")[0]
        yield from (f"<{base}" for base in WORDS.findall(bases) if base[0].isupper() and len(base) > 1)
    for found in _OTHER.finditer(code):
        defined.append(found[1] or found[2])
        yield f"={defined[-1]}"
    yield from mentions(code, defined, capital=True)


class SwiftRules(NamesRules):
    """Types by their name alone."""

    namespaces = False
