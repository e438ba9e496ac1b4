"""Finds keys, tokens and passwords in source text, so that a model does not learn them.

Three ways, all made of plain text search and short regular expressions, so that they cost a few percent of the time
that tokenising takes: formats that announce themselves (assets/secret_kinds.toml), private-key blocks, and values
that stand where passwords stand: after a telling name, in a URL, in a connection string, in an authorisation header.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from engine.assets import asset
from engine.tokenization.pieces import cut

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REVISION = 1
"Raised when the same text would be masked otherwise; part of every store's key."
PLACEHOLDER = "REDACTED"
"What a secret is replaced by."


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret stands in a text."""

    kind: str
    start: int
    end: int
    "Position after its last character."


# --- what is searched for ----------------------------------------------------------------------------------


@functools.cache
def _announced() -> tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...]:
    """Kind, texts of which one must occur, and pattern, of each kind that announces itself."""
    groups = tomllib.loads(asset("secret_kinds.toml").read_text(encoding="utf-8"))
    return tuple(
        (kind, tuple(entry["start"]), re.compile(rf"(?<![A-Za-z0-9])(?:{entry['value']})(?![A-Za-z0-9])"))
        for group in groups.values()
        for kind, entry in group.items()
    )


_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<what>[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?)-----(?P<value>.{40,20000}?)-----END (?P=what)-----"
    r"|PuTTY-User-Key-File-[23]:.{0,4000}?Private-Lines: \d+\s(?P<putty>.{40,20000}?)Private-MAC",
    re.DOTALL,
)
_PASSWORD_NAMES = ("passw", "passphrase", "pwd")
_SECRET_NAMES = ("secret", "token", "credential", "key")
_TELLING_KEY = re.compile(r"(?:api|access|auth|private|account|encryption|signing|master|license|shared)[_-]?$")
"What must stand before `key` to make it telling."
_ASSIGNED = re.compile(
    r"[\w.-]{0,24}['\"\]`]{0,2}[ \t]*(?:(?::[ \t]*[\w.\[\]| ]{1,20})?=|:=|=>|:)[ \t]*[rbuf]{0,2}"
    r"(?P<quote>['\"`])(?P<value>[^'\"`\s]{6,300})(?P=quote)"
)
_ASSIGNED_BARE = re.compile(
    r"[\w.-]{0,24}[ \t]*[=:][ \t]*(?P<value>[^\s'\"`#,;(){}<>\[\]]{6,300})[ \t]*(?:#.*)?$", re.MULTILINE
)
_IN_XML = re.compile(r"[\w.-]{0,24}>(?P<value>[^<>\s]{6,300})</")
_IN_CONNECTION = re.compile(r"(?:ord)?[ \t]*=[ \t]*(?P<value>[^;'\"\s{}<>]{6,200})[ \t]*;")
_IN_URL = re.compile(r"://[^\s:/@'\"<>]{0,80}:(?P<value>[^\s@/'\"<>{}]{3,200})@[\w.\[-]")
_IN_HEADER = re.compile(r"[ \t]+(?P<value>[\w.~+/-]{16,}={0,2})")
_BARE_VALUES = frozenset({"YAML", "INI", "TOML", "Shell", "Dockerfile", "Text", "Makefile", "Terraform"})
"Languages in which a value may stand without quotation marks."

_SECRET_FILES = re.compile(
    r"^(?:\.env(?:\.(?!example|sample|template|dist|defaults?)[\w-]+)*|\.netrc|_netrc|\.pgpass|\.pypirc|\.npmrc|\.htpasswd"
    r"|\.git-credentials|\.dockercfg|id_(?:rsa|dsa|ecdsa|ed25519)|[\w.-]+\.(?:pem|key|ppk|p12|pfx|jks|keystore|kdbx|asc|gpg)"
    r"|[\w.-]*\.tfstate(?:\.backup)?|credentials|client_secrets?(?:_[\w.-]*)?\.json|service[_-]account[\w.-]*\.json"
    r"|secrets?\.(?:ya?ml|json|toml|ini))$",
    re.IGNORECASE,
)


def is_secret_file(path: PurePosixPath) -> bool:
    """Whether a file's name says that it holds credentials: .env, id_rsa, *.pem and the like."""
    return _SECRET_FILES.match(path.name) is not None


def find_secrets(text: str, language: str) -> list[Secret]:
    """The secrets in a text, in order, without overlap."""
    found = sorted(_search(text, language), key=lambda secret: (secret.start, -secret.end))
    kept: list[Secret] = []
    for secret in found:
        if not kept or secret.start >= kept[-1].end:
            kept.append(secret)
    return kept


def hint(value: str) -> str:
    """As much of a secret as a list may show: its first characters, never more than a quarter or four of them."""
    return value[: min(4, len(value) // 4)] + "…"


def _search(text: str, language: str) -> Iterator[Secret]:
    yield from _search_announced(text)
    if "PRIVATE KEY" in text or "PuTTY-User-Key-File" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield Secret("private key", *match.span("value" if match.group("value") else "putty"))
    for match in _IN_URL.finditer(text):
        if not (_is_placeholder(match["value"]) or _SHORT_WORD.match(match["value"])):
            yield Secret("password in a URL", *match.span("value"))
    # The one capital letter that would change the length and so every position after it.
    lower = text.replace("\u0130", "I").lower()
    for name in _PASSWORD_NAMES:
        for end in _ends_of(name, lower):
            yield from _assigned("password", text, end, language)
    for name in _SECRET_NAMES:
        for end in _ends_of(name, lower):
            if name != "key" or _TELLING_KEY.search(lower, max(0, end - 16), end - len(name)):
                yield from _assigned("secret by its name", text, end, language)
    for scheme in ("bearer", "basic"):
        for end in _ends_of(scheme, lower):
            header = _IN_HEADER.match(text, end)
            if header and any(c.isdigit() for c in header["value"]) and not _is_placeholder(header["value"]):
                yield Secret("authorisation header", *header.span("value"))


_LONG_WORDS = 16
_RANDOM_LOOKING = re.compile(r"\d|(?:[A-Z][^A-Z]*){5}")


def _search_announced(text: str) -> Iterator[Secret]:
    # Every announced kind is one long word with digits or many capitals: to search those alone is ten times as quick.
    words = {
        word
        for piece in cut(text)
        for word in piece.split()
        if len(word) >= _LONG_WORDS and _RANDOM_LOOKING.search(word)
    }
    candidates = "\n".join(words)
    for kind, starts, pattern in _announced():
        if any(start in candidates for start in starts):
            for value in set(pattern.findall(candidates)):
                # "sk-000…", "AKIAXXXXXXXXXXXXXXXX" in documentation; AWS prints its own examples so.
                if len(set(value)) > 7 and "EXAMPLE" not in value:
                    for end in _ends_of(value, text):
                        yield Secret(kind, end - len(value), end)


def _ends_of(word: str, lower: str) -> Iterator[int]:
    position = lower.find(word)
    while position >= 0:
        position += len(word)
        yield position
        position = lower.find(word, position)


def _assigned(kind: str, text: str, end: int, language: str) -> Iterator[Secret]:
    """The value that a name ending at `end` is given, if it looks like a secret."""
    match = _ASSIGNED.match(text, end) or _IN_XML.match(text, end)
    if match is None and kind == "password":
        match = _IN_CONNECTION.match(text, end)
    if match is None and language in _BARE_VALUES:
        match = _ASSIGNED_BARE.match(text, end)
    if match and _is_secretive(match["value"]):
        yield Secret(kind, *match.span("value"))


# --- what is no secret -------------------------------------------------------------------------------------

_PLACEHOLDERS = re.compile(
    r"example|change.?me|placeholder|your|dummy|sample|redacted|insert|replace|todo|fixme|xxx|\*\*\*|\.\.\.|\$\{|\$\(|\{\{|%\(|<|"
    r"^\$|^%|^\{|^(?:user(?:name)?|pass(?:word|wd)?|pwd|secret|token|key|foo|bar|baz|test|none|null|true|false|admin|root"
    r"|hunter2|abc\w?|spam|eggs)[\d_]*$|^test|123456|abcdef",
    re.IGNORECASE,
)
_CODE_OR_PATH = re.compile(
    r"^[./~]|://|^[a-z]+(?:[._/:-][a-z]+)+$|^[A-Z][a-z]+(?:[A-Z][a-z]+)*$|^[A-Z]+(?:_[A-Z0-9]+)+$|^[a-z]+(?:_[a-z0-9]+)+$"
    r"|^(?:[A-Z][a-z]+[0-9]{0,2})+$|[()\[\]|\\ ]|^-|^\w+\.\w+\."
    r"|^[\w-]+\.(?:py|js|ts|json|ya?ml|txt|md|html|key|pem|crt)$|^#|^[&%]",
)
_SHORT_WORD = re.compile(r"[a-z]{1,6}$")
_UNUSUAL_MARK = re.compile(r"[!@#$%^&*?+=/]")
"In passwords, but hardly in names."
_MINIMUM_ENTROPY = 2.75
"Bits a character. Words have about 2.5 at this length, random text above 3."


def _is_placeholder(value: str) -> bool:
    return _PLACEHOLDERS.search(value) is not None


def _is_secretive(value: str) -> bool:
    """Whether a value looks made up by a machine or chosen as a password, and not like a word, path or name."""
    if _is_placeholder(value) or _CODE_OR_PATH.search(value):
        return False
    if not any(c.isalpha() for c in value):
        return False
    if not any(c.isdigit() for c in value) and not (_UNUSUAL_MARK.search(value) and value != value.lower()):
        return False
    return _entropy(value) >= _MINIMUM_ENTROPY


def _entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
