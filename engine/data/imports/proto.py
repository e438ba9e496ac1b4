"""Resolves the `import` of Protocol Buffers by a path below a root that only the build knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, Tails

_IMPORT = re.compile(r"(?m)^[ \t]*import[ \t]+(?:(?:public|weak|option)[ \t]+)?[\"']([^\"'\n]+)[\"']")


def scan(text: str) -> Iterator[str]:
    """Returns the text in the quotation marks."""
    return (found[1] for found in _IMPORT.finditer(text))


class ProtoRules(ImportRules):
    """Files by the tail of their path."""

    def __init__(self, files: Files, repository: Repository) -> None:  # noqa: ARG002
        self._tails = Tails(files)

    def _meant(self, path: PurePosixPath, wanted: str) -> Iterator[int]:
        found = self._tails.nearest(wanted, path.parent)
        if found is not None:
            yield found
