"""One .gitignore file's rules, applied to an entry of its folder or of those below.

pathspec translates the patterns. Its own matching also applies a pattern to all that lies below a match, so that
`!x.py` would bring back files that a deeper rule excludes; git asks of each folder on the way and stops at the first
one that is excluded, which is what a walk from the top does with these rules.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

_BELOW = "(?:(?P<ps_d>/)|$)"
"How pathspec ends a pattern that also matches what lies below."


_BRACKET = re.compile(r"\[[!^]?\]?(?:\[:\w+:\]|\\.|[^\]\\])*\]")
_CLASS = re.compile(r"\[:(\w+):\]")
_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \t",
    "digit": "0-9",
    "lower": "a-z",
    "space": " \t\n\r\v\f",
    "upper": "A-Z",
    "word": "a-zA-Z0-9_",
    "xdigit": "0-9a-fA-F",
}
"""Classes of POSIX, which git knows within brackets and pathspec does not."""


@dataclass(frozen=True)
class _Rule:
    regex: re.Pattern[str]
    excludes: bool
    folders_only: bool


class IgnoreRules:
    """The rules of one file."""

    def __init__(self, content: bytes) -> None:
        """Reads a .gitignore file; lines that are no pattern are passed over, as git does."""
        lines = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).split("\n")
        rules = [_parse(line.removesuffix("\r")) for line in lines]
        self._last_first = [rule for rule in reversed(rules) if rule is not None]

    def verdict(self, path: str, *, is_folder: bool) -> bool | None:
        """Whether an entry is excluded (True), brought back (False), or not spoken of (None).

        Args:
            path: Below the file's folder, with slashes between and none at its ends.
            is_folder: Whether the entry is one.
        """
        for rule in self._last_first:
            if (is_folder or not rule.folders_only) and rule.regex.search(path):
                return rule.excludes
        return None


def _parse(line: str) -> _Rule | None:
    pattern = line if line.endswith("\\ ") else line.rstrip(" ")
    folders_only = pattern.endswith("/")
    regex, excludes = pattern_to_regex(pattern.removesuffix("/"))
    return None if regex is None or excludes is None else _Rule(regex, excludes, folders_only)


def pattern_to_regex(pattern: str) -> tuple[re.Pattern[str] | None, bool | None]:
    """Translates a pattern, for entries that match it themselves; returns with it whether it excludes these."""

    def written_out(found: re.Match[str]) -> str:
        return _CLASS.sub(lambda name: _CLASSES.get(name[1], name[0]), found[0])

    try:
        regex, excludes = GitIgnoreSpecPattern.pattern_to_regex(_BRACKET.sub(written_out, pattern))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of brackets within brackets
            return None if regex is None else re.compile(exactly(regex), re.DOTALL), excludes
    except (ValueError, re.error):
        return None, None


def exactly(regex: str) -> str:
    """What pathspec makes of a pattern, for entries that match it themselves: not for what lies below them."""
    if regex.endswith(_BELOW):
        return regex.removesuffix(_BELOW) + "$"
    # "a/**" is all that lies in a, but not a itself.
    return f"{regex}." if regex.endswith("/") else regex
