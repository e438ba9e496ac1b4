"""One .gitignore file's rules, applied to an entry of its folder or of those below.

pathspec translates the patterns, less their brackets, which git reads otherwise. Its own matching also applies a
pattern to all that lies below a match, so that `!x.py` would bring back files that a deeper rule excludes; git asks of
each folder on the way and stops at the first one that is excluded, which is what a walk from the top does with these
rules.
"""

from __future__ import annotations

import os
import re
import string
from dataclasses import dataclass

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

_BELOW = "(?:(?P<ps_d>/)|$)"
"How pathspec ends a pattern that also matches what lies below."
_CLASS = re.compile(r"\[:([^\]]*):\]")
_CLASSES = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "".join(map(chr, (*range(32), 127))),
    "digit": string.digits,
    "graph": string.ascii_letters + string.digits + string.punctuation,
    "lower": string.ascii_lowercase,
    "print": string.ascii_letters + string.digits + string.punctuation + " ",
    "punct": string.punctuation,
    "space": string.whitespace,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}
"""Classes of POSIX, which git knows within brackets."""
_FIRST = 0x100000
"""Characters from here on stand for what pathspec would read otherwise. No byte is among them."""
_STANDS = re.compile("[\U00100000-\U0010ffff]")
_STARS = re.compile(r"^(!?)\*{3,}$")
_ANY_FOLDERS = re.compile(r"(?:^!?|/)\*{2,}$")
_LESS_SPACES = re.compile(r"((?:\\.|[^\\]|\\$)*?) *", re.DOTALL)


@dataclass(frozen=True)
class _Rule:
    regex: re.Pattern[str]
    excludes: bool
    folders_only: bool


class IgnoreRules:
    """The rules of one file."""

    def __init__(self, content: bytes) -> None:
        """Reads a .gitignore file; lines that are no pattern are passed over, as git does."""
        lines = content.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n")
        rules = [_parse(line.removesuffix("\r")) for line in lines]
        self._last_first = [rule for rule in reversed(rules) if rule is not None]

    def verdict(self, path: str, *, is_folder: bool) -> bool | None:
        """Whether an entry is excluded (True), brought back (False), or not spoken of (None).

        Args:
            path: Below the file's folder, with slashes between and none at its ends.
            is_folder: Whether the entry is one.
        """
        name = bytewise(path)
        for rule in self._last_first:
            if (is_folder or not rule.folders_only) and rule.regex.search(name):
                return rule.excludes
        return None


def bytewise(text: str) -> str:
    """Returns a character for each byte of a path or pattern: git's `?` and brackets match one byte, not one letter."""
    return text if text.isascii() else os.fsencode(text).decode("latin-1")


def _parse(line: str) -> _Rule | None:
    found = _LESS_SPACES.fullmatch(line)
    pattern = found[1] if found else line
    if pattern.endswith("//"):
        return None
    folders_only = pattern.endswith("/")
    regex, excludes = pattern_to_regex(pattern.removesuffix("/"))
    return None if regex is None or excludes is None else _Rule(regex, excludes, folders_only)


def pattern_to_regex(pattern: str) -> tuple[re.Pattern[str] | None, bool | None]:
    """Translates a pattern, for entries that match it themselves; returns with it whether it excludes these.

    Args:
        pattern: As `bytewise` gives it, like what the expression is searched in.
    """
    try:
        plain, meant = _set_aside(pattern)
        regex, excludes = GitIgnoreSpecPattern.pattern_to_regex(plain)
        if regex is None:
            return None, excludes
        whole = _STANDS.sub(lambda found: meant[ord(found[0]) - _FIRST], exactly(regex))
        return re.compile(whole, re.DOTALL), excludes
    except (ValueError, re.error):
        return None, None


def _set_aside(pattern: str) -> tuple[str, list[str]]:
    """Puts a character in place of each bracket expression and white space; returns the expression for each, too.

    pathspec has no escapes and classes within brackets, splits them at slashes, and drops white space that git keeps;
    it takes three asterisks for one.

    Raises:
        ValueError: git matches nothing by it.
    """
    plain, at, is_anchored = "", 0, False
    meant: list[str] = []
    while at < len(pattern):
        is_escaped = pattern[at] == "\\"
        char = pattern[at + is_escaped : at + is_escaped + 1]
        if char == "[" and not is_escaped:
            expression, length = _brackets(pattern[at:])
            # Any slash ties a pattern to its folder, also one that cannot match.
            is_anchored |= "/" in pattern[at : at + length]
            plain, at = plain + chr(_FIRST + len(meant)), at + length
            meant.append(expression)
        elif is_escaped and char == "/":
            if plain in ("", "!"):
                raise ValueError("no path begins with a slash")
            # Behind two asterisks it asks for a folder at least, as a slash alone does not.
            plain, at = plain + ("/*/" if _ANY_FOLDERS.search(plain) else "/"), at + 2
        elif char.isspace():
            plain, at = plain + chr(_FIRST + len(meant)), at + is_escaped + 1
            meant.append(re.escape(char))
        else:
            plain, at = plain + pattern[at : at + is_escaped + 1], at + is_escaped + 1
    plain = "/".join(_STARS.sub(r"\1**", part) for part in plain.split("/"))
    if is_anchored and "/" not in plain:
        plain = f"!/{plain[1:]}" if plain.startswith("!") else f"/{plain}"
    return plain, meant


def _brackets(text: str) -> tuple[str, int]:
    """Translates the bracket expression that a text begins with; returns its length, too.

    Raises:
        ValueError: it is not closed, or names a class that there is not.
    """
    is_negated = text[1:2] in ("!", "^")
    start = at = 2 if is_negated else 1
    found: set[str] = set()
    before = ""  # with which a range may begin
    while at == start or text[at : at + 1] != "]":
        if named := _CLASS.match(text, at):
            if named[1] not in _CLASSES:
                raise ValueError(f"no class {named[1]}")
            found.update(_CLASSES[named[1]])
            at, before = named.end(), ""
            continue
        is_range = text[at : at + 1] == "-" and before != "" and text[at + 1 : at + 2] not in ("", "]")
        at += is_range
        at += text[at : at + 1] == "\\"
        if at >= len(text):
            raise ValueError("brackets that are not closed")
        found.update(map(chr, range(ord(before), ord(text[at]) + 1)) if is_range else text[at])
        at, before = at + 1, "" if is_range else text[at]
    bytes_of = "".join(f"\\x{ord(char):02x}" for char in sorted(found | {"/"} if is_negated else found - {"/"}))
    if is_negated:
        return f"[^{bytes_of}]", at + 1
    return f"[{bytes_of}]" if bytes_of else "(?!)", at + 1


def exactly(regex: str) -> str:
    """What pathspec makes of a pattern, for entries that match it themselves: not for what lies below them."""
    if regex.endswith(_BELOW):
        return regex.removesuffix(_BELOW) + "$"
    # "a/**" is all that lies in a, but not a itself.
    return f"{regex}." if regex.endswith("/") else regex
