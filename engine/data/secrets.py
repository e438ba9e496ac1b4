"""Finds keys, tokens and passwords in source text, so that a model does not train on them.

The rules are in engine.data.secret_rules: formats that announce themselves, values that stand after telling names,
values that stand where secrets stand, and all of these inside base64. Every expression is bounded, so that time grows
with the text alone; a text that takes longer all the same is not searched to its end, and not trained on either.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from engine.data.secret_rules import (
    announced,
    bare,
    calls,
    commands,
    encoded,
    keys,
    literals,
    manifests,
    names,
    sql,
    urls,
)

REVISION = 2
"Raised when the same text would be masked otherwise; part of every store's key."
PLACEHOLDER = "REDACTED"
"What a secret is replaced by."
SECONDS = 20.0
"For one text. A megabyte takes less than a tenth of a second; only crafted text takes long."


class SearchTooLongError(Exception):
    """A text was not searched to its end within its time."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret stands in a text."""

    kind: str
    start: int
    end: int
    "Position after its last character."


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


def find_secrets(text: str, language: str, allowed: Collection[str] = ()) -> list[Secret]:
    """The secrets in a text, in order, without overlap.

    Args:
        text: What is searched.
        language: Of the text; in some, values stand without quotation marks.
        allowed: Fingerprints of values that are no secrets.

    Raises:
        SearchTooLongError: the text took longer than SECONDS.
    """
    deadline = time.monotonic() + SECONDS
    found = []
    for number, secret in enumerate(_search(text, language, depth=2)):
        found.append(secret)
        if number % 64 == 0 and time.monotonic() > deadline:
            raise SearchTooLongError
    if time.monotonic() > deadline:
        raise SearchTooLongError
    found += [same for secret in found for same in _same(text, secret)]
    if allowed:
        found = [secret for secret in found if fingerprint(text[secret.start : secret.end]) not in allowed]
    return _without_overlap(found)


_LONGEST_REPEATED = 300
_LEAST_REPEATED = 8
"Characters of a value that is a secret wherever it stands; shorter ones may be words."


def _same(text: str, secret: Secret) -> Iterator[Secret]:
    """The other places of a secret's value in the text."""
    value = text[secret.start : secret.end]
    if _LEAST_REPEATED <= len(value) <= _LONGEST_REPEATED and any(c.isdigit() for c in value):
        for other in _every(text, secret.kind, value):
            before, after = text[other.start - 1 : other.start], text[other.end : other.end + 1]
            if other.start != secret.start and not (before.isalnum() or after.isalnum()):
                yield other


def _without_overlap(found: list[Secret]) -> list[Secret]:
    kept: list[Secret] = []
    for secret in sorted(found, key=lambda secret: (secret.start, -secret.end)):
        if not kept or secret.start >= kept[-1].end:
            kept.append(secret)
        elif secret.end > kept[-1].end:
            kept[-1] = Secret(kept[-1].kind, kept[-1].start, secret.end)
    return kept


def fingerprint(value: str) -> str:
    """What a finding is called in a list of allowed ones: the same for the same value wherever it stands."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def hint(value: str) -> str:
    """As much of a secret as a list may show: its first characters, never more than a quarter or four of them."""
    return value[: min(4, len(value) // 4)] + "…"


def masked_name(name: str) -> str:
    """A path with the secrets in it replaced."""
    words = announced.candidates(re.sub(r"[/\\ ]", "\n", name))
    for _, value in announced.announced([*words, *announced.candidates(name)]):
        name = name.replace(value, PLACEHOLDER)
    return name


def _search(text: str, language: str, depth: int) -> Iterator[Secret]:
    # The one capital letter that would change the length and so every position after it.
    lower = text.replace("\u0130", "I").lower()
    words = announced.candidates(text)
    for kind, value in announced.announced(words):
        yield from _every(text, kind, value)
    for kind, start, end in _by_place(text, lower, language, words):
        yield Secret(kind, start, end)
    if depth:
        for kind, value in encoded.encoded(words, lambda inner: any(_search(inner, "YAML", depth - 1))):
            yield from _every(text, kind, value)


def _by_place(text: str, lower: str, language: str, words: list[str]) -> Iterator[tuple[str, int, int]]:
    yield from keys.key_blocks(text)
    yield from urls.urls(text)
    yield from urls.headers(text, lower)
    yield from commands.commands(text, lower)
    yield from sql.sql(text, lower)
    yield from calls.calls(text, lower)
    yield from manifests.manifests(text, lower)
    found = names.present(text, lower)
    yield from literals.named_literals(text, lower, found)
    yield from literals.compared_literals(text, lower)
    yield from bare.bare_values(text, lower, found, language)
    yield from announced.beside_names(text, lower, words)


def _every(text: str, kind: str, value: str) -> Iterator[Secret]:
    position = text.find(value)
    while position >= 0:
        yield Secret(kind, position, position + len(value))
        position = text.find(value, position + len(value))
