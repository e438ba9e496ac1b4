"""Masks secrets, home folders and the names of users and hosts in text that a person may hand on.

A problem report is read by strangers, so that a value too many is masked rather than one too few: the search of
engine.data.secrets runs for several languages, values of the environment that a name calls secret are known, and
long random words are masked whatever stands before them.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import pwd
import re
import socket
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.data.secrets import PLACEHOLDER, SearchTooLongError, find_secrets
from engine.errors import one_line

LEFT_OUT = "(left out: it could not be searched for secrets to its end)"
_LANGUAGES = ("Shell", "YAML", "INI", "Python")
"In each of them, values stand elsewhere."
_LEAST = 6
"Characters of a value that is masked wherever it stands; shorter ones are parts of words."
_SECRET_WORDS = re.compile(
    r"(?i)(?:^|[_\W\d])(?:token|secrets?|pass(?:word|wd|phrase)?|(?:api)?key|credentials?|auth|cookie|webhook)(?:$|[_\W\d])"
)
"Words of a variable's name."
_NOBODY = ("root", "user", "admin", "ubuntu", "debian", "ec2-user", "runner", "jovyan", "vscode", "nobody")
"Accounts that name nobody."
_LONG_WORD = re.compile(r"(?<![A-Za-z0-9+])[A-Za-z0-9+]{32,}={0,2}(?![A-Za-z0-9+])")
_KEY_LINE = re.compile(r"(?m)^(?P<before>[ \t\"'|>]*)(?P<body>[A-Za-z0-9+/]{40,}={0,2})(?=[\\\"', \t]*$)")
"A line of a key whose first line lies before a file's tail."
_EMAIL = re.compile(r"[\w.+-]{1,64}@(?=[\w-]{1,63}\.)[\w.-]{3,253}")
_HOMES = re.compile(
    r"(?:/home/|/Users/|/export/home/)[^/\s\"'`:,;)\]}>]+|/root(?![\w.-])|(?i:\b[a-z]:\\{1,4}Users\\{1,4}[^\\\"'\n/:]+)"
)


class Mask:
    """Masks texts, and remembers what it found: a secret of one text is masked in the others, too.

    Args:
        environment: Variables whose values may be secret.
        homes: Home folders of the user.
        names: Of the user, and of this host.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        homes: frozenset[str] = frozenset(),
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._known: set[str] = set()
        self._homes = sorted((home for home in homes if len(home.strip("/")) > 0), key=len, reverse=True)
        self._names = {name: shown for name, shown in (names or {}).items() if name and name not in _NOBODY}
        for name, value in environment.items():
            self._learn_variable(name, value)

    @classmethod
    def of_this_process(cls) -> Mask:
        """Returns a mask for this process's environment, its user and its host."""
        homes, users = set(), {os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
        with contextlib.suppress(KeyError, OSError):
            entry = pwd.getpwuid(os.getuid())
            homes.add(entry.pw_dir)
            users.add(entry.pw_name)
        with contextlib.suppress(RuntimeError):
            homes.add(str(Path.home()))
        with contextlib.suppress(KeyError, OSError):
            users.add(getpass.getuser())
        homes |= {os.path.realpath(home) for home in homes}
        host = socket.gethostname()
        hosts = {host, host.partition(".")[0]} - {"localhost"}
        names = dict.fromkeys(users, "USER") | dict.fromkeys(hosts, "HOST")
        return cls(os.environ, frozenset(homes), names)

    def text(self, text: str) -> str:
        """Returns a text with everything masked that is known or found in it."""
        try:
            secrets = [
                text[secret.start : secret.end] for language in _LANGUAGES for secret in find_secrets(text, language)
            ]
        except SearchTooLongError:
            return LEFT_OUT
        for value in secrets:
            self.learn(value)
        # What is too short to be known elsewhere is masked in this text alone.
        for value in sorted({*secrets, *self._known}, key=len, reverse=True):
            text = text.replace(value, PLACEHOLDER)
        text = _KEY_LINE.sub(lambda match: match["before"] + _unless_plain(match["body"]), text)
        text = _LONG_WORD.sub(lambda match: _unless_plain(match[0]), text)
        return self._identity(text)

    def values(self, value: Any) -> Any:
        """Masks every string of JSON values, the names in mappings too."""
        return _mapped(value, self.text)

    def _identity(self, text: str) -> str:
        text = _EMAIL.sub("EMAIL", text)
        for home in self._homes:
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
        text = _HOMES.sub("~", text)
        for name, shown in self._names.items():
            # A short name is a part of other words, but not of a path's.
            border = r"(?<![\w])", r"(?![\w])"
            if len(name) < 3:
                border = r"(?<=[/\\@])", r"(?=[/\\@\s]|$)"
            text = re.sub(f"{border[0]}{re.escape(name)}{border[1]}", shown, text)
        return text

    def _learn_variable(self, name: str, value: str) -> None:
        if _SECRET_WORDS.search(name):
            self.learn(value)
        text = f"{name}={value}\n"
        try:
            found = find_secrets(text, "Shell")
        except SearchTooLongError:
            found = []
        for secret in found:
            self.learn(text[secret.start : secret.end])

    def learn(self, value: str) -> None:
        """Adds a value that is masked wherever it stands, in the spellings in which other texts quote it."""
        if len(value.strip()) < _LEAST or value.strip("*.") == PLACEHOLDER:
            return
        spellings = {value, value.strip(), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
        spellings |= {one_line(value), repr(value)[1:-1], ascii(value)[1:-1]}
        with contextlib.suppress(UnicodeEncodeError):
            spellings |= {urllib.parse.quote(value), urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value)}
        self._known |= spellings


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(name)): _mapped(one, change) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(one, change) for one in value]
    return value


def _unless_plain(word: str) -> str:
    """Masks a word of several kinds of characters, or of a hash's; a long identifier stays."""
    body = word.rstrip("=")
    is_hex = re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", body) is not None and any(c.isdigit() for c in body)
    kinds = sum((any(c.isdigit() for c in body), any(c.islower() for c in body), any(c.isupper() for c in body)))
    return PLACEHOLDER if is_hex or kinds == 3 else word
