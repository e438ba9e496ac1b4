"""Finds credentials in URLs and in authorisation headers."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import urllib.parse
from collections.abc import Iterator

from engine.data.secret_rules.encoded import decoded_ascii
from engine.data.secret_rules.logins import is_login
from engine.data.secret_rules.other_things import is_definition, is_name
from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secret_rules.values import (
    Evidence,
    is_example,
    is_secretive,
    is_sequence,
    is_short_quoted,
    is_trivial,
    is_wordlike,
)

Found = tuple[str, int, int]
_IN_URL = re.compile(r"://(?P<user>[^\s:/'\"<>`]{0,80}):(?P<value>[^\s/'\"<>{}`]{3,200})@[\w.\[$%{-]")
_SOURCE_NAME = re.compile(r"(?<![\w/:.])[\w.-]{1,60}:(?P<value>[^\s/'\"<>{}`@:]{3,200})@(?:tcp|unix|udp)\(")
"Go's names of MySQL's sources, which begin without a scheme."
_USER_ONLY = re.compile(r"https?://(?P<value>[\w.~-]{20,200})@[\w.-]+")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_HEX = re.compile(r"[0-9a-f]+$")
_SHORT_WORD = re.compile(r"[a-z]{1,6}$")
_URL_PLACEHOLDER = re.compile(
    r"^(?:(?:pass(?:word|wd|phrase)?|pwd|pw|secret|token|user(?:name)?|key)\d{0,6}|\d{1,6}\W{0,3}|@.*|x+|\$.*|%.*|\{.*|<.*|\*+|[a-z]{3,10}Key|(?-i:(?:my|your|the|some|any|db|database|user|admin|root|proxy|smtp|mail|ftp|git|http|auth|api|app|client|server|service|account|login|access|bot|test|old|new|bad|wrong|valid|invalid|redis|mongo|mysql|postgres|pg|rabbit|broker|registry|remote|local)(?:[Dd]b|User|Admin|Proxy|Client|Server|Service|Account)?(?:PW|Pwd?|Pass(?:word)?|Secret|Token|Key))|(?:auth|api|access|user|bot|account|my)?(?-i:Token|Secret|Password|Key)|changeme|test\w{0,4}|admin|root|guest|foo|bar|example\w*|your\w*)$",
    re.IGNORECASE,
)
_MARKS, _TRIVIAL = re.compile(r"\W"), re.compile(r"(?:pass|password|secret|token)", re.IGNORECASE)
_HEADER = re.compile(r"(?:bearer|basic|token|apikey|negotiate|digest)[ \t]{1,4}(?P<value>[\w.~+/=:-]{8,2000})")
_AUTHORIZATION = re.compile(
    r"authorization[\"'`]?[ \t]{0,4}[:=,][ \t]{0,4}\\{0,8}[\"'`]?(?P<value>[\w.~+/=-]{16,2000})(?=[\s\"'`\\]|$)",
    re.MULTILINE,
)


def urls(source: SearchedText) -> Iterator[Found]:
    """Yields passwords and tokens before the host of a URL."""
    text = source.text
    if source.has("@tcp") or source.has("@unix") or source.has("@udp"):
        for match in _SOURCE_NAME.finditer(text):
            if is_secretive(match["value"], Evidence.PASSWORD):
                yield "password in a URL", *match.span("value")
    if not (source.has("://") and source.has("@")):
        return
    for match in _IN_URL.finditer(text):
        value = match["value"]
        # The last @ before the host ends the password.
        # FTP's anonymous users give an address.
        word = (
            value == match["user"]
            or match["user"] in ("anonymous", "ftp")
            or (value.isalpha() and value.isascii() and value.islower() and is_wordlike(value))
        )
        bare = _PERCENT.sub("", value)
        # An underscore or a dash stands for no user before a token.
        marks = match["user"].strip("_-")
        if sum(map(str.isalnum, bare)) < 3 or _TRIVIAL.fullmatch(_MARKS.sub("", bare)):
            continue
        if is_sequence(bare) or (marks and not any(map(str.isalnum, marks))):
            continue
        if is_short_quoted(value) or is_trivial(value) or _is_words(value):
            continue
        if len(bare) < 3 or "[" in bare or "]" in bare or is_name(value, is_wordlike) or is_definition(value):
            continue
        if not (word or _URL_PLACEHOLDER.match(value) or _SHORT_WORD.match(value) or _is_reference(value)):
            yield "password in a URL", *match.span("value")
    for match in _USER_ONLY.finditer(text):
        if is_secretive(match["value"], Evidence.NEAR) and (
            len(match["value"]) >= 32 or not _HEX.match(match["value"])
        ):
            yield "token in a URL", *match.span("value")


def _is_words(value: str) -> bool:
    """Tells whether percent signs part the words of what stands for a password: my%20pass."""
    words = urllib.parse.unquote(value)
    return "%20" in value and not any(map(str.isdigit, words)) and is_example(words)


def _is_reference(value: str) -> bool:
    return bool(
        re.search(
            r"\$\{|\$\(|\{\{|%\(|\$[A-Z]|^%|example|passw|your|secret$|placeholder|redacted|xxx|\*\*\*|•|%[sdvq]|^:|^\\u",
            value,
            re.IGNORECASE,
        )
    )


def headers(source: SearchedText) -> Iterator[Found]:
    """Yields credentials after their scheme."""
    text, lower = source.text, source.lower
    for scheme in ("bearer ", "basic ", "token ", "apikey "):
        if source.has(scheme.rstrip() + "\n"):
            for match in re.finditer(scheme + r"[ \t]{0,3}(?P<value>[\w.~+/=:-]{8,2000})", lower):
                value = text[slice(*match.span("value"))]
                if scheme == "basic ":
                    if _is_basic(value):
                        yield "authorisation header", *match.span("value")
                elif scheme == "bearer ":
                    if len(value) >= 12 and is_secretive(value, Evidence.NAMED):
                        yield "authorisation header", *match.span("value")
                elif is_secretive(value, Evidence.NEAR) and len(value) >= 16:
                    yield "authorisation header", *match.span("value")
    if source.has("authorization"):
        for match in _AUTHORIZATION.finditer(lower):
            if is_secretive(text[slice(*match.span("value"))], Evidence.NEAR):
                yield "authorisation header", *match.span("value")


def _decoded_words(value: str) -> str | None:
    """Returns what a value is base64 of, where that is a user and a password with letters beyond ASCII."""
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode()
        if ":" in text and text.isprintable():
            return text
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode("cp1252")
        user, colon, password = text.partition(":")
        # Nearly every byte is a letter or a mark of it.
        if colon and user.isalpha() and password.isalpha():
            return text
    return None


def _is_basic(value: str) -> bool:
    decoded = decoded_ascii(value)
    if decoded is None:
        decoded = _decoded_words(value)
    if decoded is not None:
        return is_login(decoded)
    return len(value) >= 16 and is_secretive(value, Evidence.NEAR)
