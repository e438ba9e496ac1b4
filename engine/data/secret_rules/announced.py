"""Finds keys and tokens that announce themselves by their form, or by their form beside their provider's name.

Forms are data: assets/secret_kinds.toml, from the providers' documentation, and assets/gitleaks_rules.toml, from
gitleaks (MIT licence, Copyright (c) 2019 Zachary Rice).
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ahocorasick_rs import BytesAhoCorasick, Implementation

from engine.assets import asset
from engine.data.secret_rules.names import says_other_thing
from engine.data.secret_rules.searched_text import SearchedText, is_random_looking
from engine.data.secret_rules.second_signs import is_statement
from engine.data.secret_rules.values import (
    Evidence,
    entropy,
    is_placeholder,
    is_secretive,
    is_sequence,
    is_wordlike,
    words_share,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LONG_WORDS = 16
_SOLID = re.compile(r"[A-Za-z0-9+/=_~.:$@%&|-]{16,}")
"What keys are made of, with what binds their parts; brackets, quotation marks and commas are not."
_NAMES_BEFORE = 100
"Characters before a value in which its provider's name may stand."


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    starts: tuple[str, ...]
    "Texts of which one must occur."
    value: str
    "An expression."
    entropy: float

    @property
    def pattern(self) -> re.Pattern[str]:
        """The value within its bounds; compiled where one of the starts occurs."""
        return _bounded(self.value)


@dataclass(frozen=True, slots=True)
class _Provider:
    name: str
    names: tuple[str, ...]
    "In small letters; one of them stands before the value."
    value: re.Pattern[str]
    "Of the whole value."
    entropy: float


@functools.cache
def _kinds() -> tuple[_Kind, ...]:
    groups = tomllib.loads(asset("secret_kinds.toml").read_text(encoding="utf-8"))
    own = [
        _Kind(kind, tuple(entry["start"]), entry["value"], 0.0)
        for group in groups.values()
        for kind, entry in group.items()
    ]
    rules = tomllib.loads(asset("gitleaks_rules.toml").read_text(encoding="utf-8"))
    others = [
        _Kind(kind, tuple(entry["start"]), entry["value"], entry["entropy"])
        for kind, entry in rules["announced"].items()
    ]
    return (*own, *others)


@functools.cache
def _starts() -> tuple[list[list[int]], BytesAhoCorasick]:
    """Returns the numbers of each start's kinds, and what finds the starts in one pass."""
    starts: dict[str, list[int]] = {}
    for number, kind in enumerate(_kinds()):
        for start in kind.starts:
            starts.setdefault(start, []).append(number)
    found = BytesAhoCorasick([start.encode() for start in starts], implementation=Implementation.ContiguousNFA)
    return list(starts.values()), found


@functools.cache
def _bounded(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9])(?:{value})(?![A-Za-z0-9])")


@functools.cache
def _providers() -> tuple[_Provider, ...]:
    rules = tomllib.loads(asset("gitleaks_rules.toml").read_text(encoding="utf-8"))
    return tuple(
        _Provider(kind, tuple(entry["names"]), re.compile(entry["value"]), entry["entropy"])
        for kind, entry in rules["beside"].items()
    )


@functools.cache
def _provider_values() -> re.Pattern[str]:
    return re.compile("|".join(sorted({f"(?:{provider.value.pattern})" for provider in _providers()})))


@functools.cache
def _provider_parts() -> frozenset[str]:
    """Returns the first word of each provider's name."""
    return frozenset(name.split()[0] for provider in _providers() for name in provider.names)


@functools.cache
def _provider_names() -> re.Pattern[str]:
    names = sorted({name for provider in _providers() for name in provider.names}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)))


def announced(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yields kind and value of each key of a known form."""
    if not words:
        return
    joined = "\n".join(filter(is_random_looking, set(_SOLID.findall("\n".join(words)))))
    starts, automaton = _starts()
    found = {index for index, _, _ in automaton.find_matches_as_indexes(joined.encode("utf-8", "replace"), True)}
    for number in sorted({number for index in found for number in starts[index]}):
        kind = _kinds()[number]
        for match in kind.pattern.finditer(joined):
            value = match[0]
            # "sk-000…", "AKIAXXXXXXXXXXXXXXXX" in documentation; AWS prints its own examples so.
            varied = (
                len(set(value)) > 7
                and not (_EXAMPLE.search(value) or _CAPITAL_HEX.fullmatch(value))
                and not (len(value) < _LONGEST_REPEATING and _REPEATED.search(value))
                and entropy(value) >= kind.entropy
            )
            if varied and not (is_sequence(value) or _is_part(joined, match) or _is_other(kind, value)):
                yield kind.name, value


_EXAMPLE = re.compile(r"EXAMPLE|FAKE|dummy|(?<![A-Za-z])fake")
_CAPITAL_HEX = re.compile(r"[0-9A-F]{32,}")
"A test's data, which begins as a key does."
_REPEATED = re.compile(r"(.)\1{7}")
_LONGEST_REPEATING = 120
"Characters of a token in which one that is repeated tells of an example; certificates have such runs, too."
_DATA = re.compile(r"[A-Za-z0-9+/]+")
_MOST_WORDS = 0.5
"Share of what stands around a key in data that words make up."
_DATA_BEFORE, _DATA_AFTER = re.compile(r"[A-Za-z0-9+/]{0,24}$"), re.compile(r"[A-Za-z0-9+/]{0,24}")


def _is_part(joined: str, match: re.Match[str]) -> bool:
    """Tells whether dots say that a value is shortened, or it stands within encoded data."""
    before = _DATA_BEFORE.search(joined, max(0, match.start() - 24), match.start())
    after = _DATA_AFTER.match(joined, match.end())
    if joined.startswith(("...", "…"), match.end()):
        # Where a character less would be no token, it is whole.
        return match.re.fullmatch(match[0][:-1]) is not None
    # A key's own secret stands beside it, and words of a path; data goes on at both of its ends.
    if not (before and before[0] and after and after[0] and _DATA.fullmatch(match[0])):
        return False
    around = before[0] + after[0]
    return len(around) >= 24 and is_random_looking(around) and words_share(around) < _MOST_WORDS


_MARKS = re.compile(r"[^A-Za-z0-9]")
_WORD_OF_NAME = re.compile(r"[a-z]{4,}")
_MOST_NAMED = 0.4
"Share of a token behind its first characters that whole words between marks make up."


def _is_other(kind: _Kind, value: str) -> bool:
    """Tells whether a value of a known form names itself by words, or is a web token that opens nothing."""
    if value.startswith("eyJ"):
        return is_statement(value)
    start = next((start for start in kind.starts if start in value), "")
    rest = value.partition(start)[2] if start else value  # of some forms a start stands before the value
    words = sum(len(part) for part in _MARKS.split(rest) if _WORD_OF_NAME.fullmatch(part) and is_wordlike(part))
    return words >= _MOST_NAMED * len(rest) > 0


_TOKEN = re.compile(r"[A-Za-z0-9+/=_~.-]{16,200}")
_TWO_DIGITS = re.compile(r"\d\D*\d")
_LONG_WORD = re.compile(r"[a-z]{10}|[A-Z]{12}|\.\w+\.|_[a-z]+_")
_TELLING = re.compile(
    r"(?<!://)(?:passw|pwd|secret|token(?!i[sz])|credential|(?:api|access|private)[_ -]?key"
    r"|auth(?!or(?!i[sz])|n\b|enticator|_?tag)"
    r"|webhook|session(?!_?dir)(?:[_-]?id)?|bearer|jwt)(?P<tail>[\w.-]{0,24})\W{1,10}(?:\w{1,8}\W{1,4})?$"
)
"A telling name, and at most one word between it and the value: a call, a type, a prefix."
_TOLD_BY = frozenset(
    {"passw", "pwd", "secret", "token", "credential", "api", "access", "private", "auth", "webhook", "session"}
    | {"bearer", "jwt"}
)
"Parts of which every telling name holds one."
_KEYS = re.compile(r"key|token(?!i[sz])|secret|auth|pass|api|cred|login|dsn|sid\b")
_DIGEST = re.compile(
    r"sha\d|md5|hash|digest|checksum|\btag\b|tag[\"']?[ \t]{0,4}[:=(]|cipher|encrypted|wrapped"
    r"|commit|revision|rev\b|integrity|etag|fingerprint"
    r"|public|uuid|guid|version|blob|tree|index|nonce|challenge|client_?id|app_?id"
    r"|[cx]srf|authenticity|verificationtoken"
)

_OTHER_NAME = re.compile(
    r"[\s,({]id\s{0,4}:\s{0,4}[\"'`]$|[\"']id\\{0,8}[\"']\s{0,4}:\s{0,4}\\{0,8}[\"']$|_signature=|\bsig=|&sign=|allowed_?credentials\W{1,12}$|(?:next|prev\w*|page|continuation|cursor|client_?request|creation|idempotency)_?token\W{1,12}$|<enc[\w:-]{0,20}>$|\{s?sha\d{0,3}\}$|\w[/\\]{1,4}$|"
    r"(?:\b|_)(?:ref|state|code|csrf|node_?id|cursor|signature|iv"
    r"|(?:credential|account|user|tenant|project|request)[_ ]?id)"
    r"\\{0,4}[\"']?[ \t]{0,4}[:=]{1,2}>?[ \t]{0,4}\\{0,4}[\"']?$"
    r"|\$[\w=,.+/-]{0,40}\$[^\s\"'$]{0,60}$|enc[(\[]$|\bbasic[ \t]{1,4}$"
    r"|(?:(?<!secret)[_-]id|(?:key|token|client|access)id|identifier|signature)s?\W{1,10}$"
)
"What is no secret stands behind it: another name's value, a part of a salted hash, what is encrypted."


def beside_names(source: SearchedText) -> Iterator[tuple[str, int, int]]:
    """Yields random-looking values in whose line a provider or a telling name stands before them."""
    if not (source.found(_TOLD_BY) or source.found(_provider_parts())):
        return
    for token in set(_TOKEN.findall("\n".join(source.candidates))):
        if not _TWO_DIGITS.search(token) or _LONG_WORD.search(token):
            continue
        # A name and its value, or base64 with its filling.
        value = token.strip("=.-").rpartition("=")[2]
        for piece in {value, token.rpartition("=")[2] or token}:
            # What the value tells is asked before it is looked for in the text, which takes longer.
            if (
                len(piece) >= _LONG_WORDS
                and "=" not in piece.rstrip("=")
                and "//" not in piece
                and (is_secretive(piece, Evidence.ALONE) or _provider_values().fullmatch(piece))
                and not _is_no_key(piece)
            ):
                yield from _beside(source.text, source.lower, piece)


@functools.lru_cache(maxsize=1024)
def _is_no_key(value: str) -> bool:
    # The head of a token alone is the same in all tokens of its algorithm.
    head = value.startswith(("eyJhbGciOi", "eyJ0eXAiOi")) and len(value) < 60 and value.count(".") < 2
    return head or entropy(value) < 2.9 or is_placeholder(value)


def _beside(text: str, lower: str, value: str) -> Iterator[tuple[str, int, int]]:
    start = text.find(value)
    tries = 0
    while start >= 0 and tries < 20:
        tries += 1
        end = start + len(value)
        if not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
            first = max(0, start - _NAMES_BEFORE)
            line = max(lower.rfind("\n", first, start) + 1, first)
            before = lower[line:start]
            braced = before.endswith("{") and text.startswith("}", end)  # Windows' identifiers
            if not (braced or _DIGEST.search(before) or _OTHER_NAME.search(before)):
                after = lower[end : end + 60].split("\n", 1)[0]
                if after.startswith(("://", "...")):
                    return
                telling = _TELLING.search(before)
                told = telling is not None and not says_other_thing(
                    text[line + telling.start("tail") : line + telling.end("tail")]
                )
                if not told and not _KEYS.search(before):
                    pass
                elif told and is_secretive(value, Evidence.ALONE):
                    yield "secret beside its name", start, end
                elif _KEYS.search(before) and (names := _provider_names().findall(before)):
                    for provider in _providers():
                        if (
                            any(name in names for name in provider.names)
                            and provider.value.fullmatch(value)
                            and entropy(value) >= max(3.0, provider.entropy)
                        ):
                            yield provider.name, start, end
                            break
        start = text.find(value, start + 1)
