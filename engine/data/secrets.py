"""Finds keys, tokens and passwords in source text, so that a model does not train on them.

The rules are in engine.data.secret_rules: formats that announce themselves, values that stand after telling names,
values that stand where secrets stand, and all of these inside base64. Every expression is bounded, so that time grows
with the text alone; a text that takes longer all the same is not searched to its end, and not trained on either.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

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
    tables,
    urls,
)
from engine.data.secret_rules.searched_text import SearchedText, candidates, is_random_looking, line_start
from engine.data.secret_rules.second_signs import is_method
from engine.data.secret_rules.values import words_share

REVISION = 14
"Raised when the same text would be masked otherwise; part of every store's key."
PLACEHOLDER = "REDACTED"
"What a secret is replaced by."
SECONDS = 20.0
"Of the thread's own time for one text, so that a busy machine leaves out no text that an idle one keeps."


class SearchTooLongError(Exception):
    """A text was not searched to its end within its time."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret stands in a text."""

    kind: str
    start: int
    end: int
    "Position after its last character."


def find_secrets(text: str, language: str, allowed: Collection[str] = ()) -> list[Secret]:
    """Returns the secrets in a text, in order, without overlap.

    Args:
        text: What is searched.
        language: Of the text; in some, values stand without quotation marks.
        allowed: Fingerprints of values that are no secrets.

    Raises:
        SearchTooLongError: the text took longer than SECONDS, or holds thousands of secrets.
    """
    deadline = time.thread_time() + SECONDS
    found: list[Secret] = []
    kinds: dict[str, str] = {}
    for secret in _search(text, language, depth=2):
        found.append(secret)
        kinds.setdefault(text[secret.start : secret.end], secret.kind)
        if len(kinds) > _MOST_VALUES or (len(found) % 64 == 0 and time.thread_time() > deadline):
            raise SearchTooLongError
    if time.thread_time() > deadline:
        raise SearchTooLongError
    if found and (public := keys.public_blocks(text)):
        found = [one for one in found if not _is_within(one, public)]
        kinds = {text[secret.start : secret.end]: secret.kind for secret in found}
    if others := _numbered(text, kinds) | _named_in_code(text, language, kinds):
        found = [one for one in found if text[one.start : one.end] not in others]
        kinds = {value: kind for value, kind in kinds.items() if value not in others}
    for value, kind in kinds.items():
        found += _everywhere(text, kind, value)
    if allowed:
        found = [secret for secret in found if fingerprint(text[secret.start : secret.end]) not in allowed]
    return _without_overlap(found)


def _is_within(secret: Secret, places: Sequence[tuple[int, int]]) -> bool:
    """Tells whether a secret stands within one of the places, which are in order and apart."""
    before = bisect.bisect_right(places, secret.start, key=itemgetter(0))
    return before > 0 and secret.end <= places[before - 1][1]


_MOST_VALUES = 2000
"Different secrets in one text; each is looked for in the whole of it."
_LONGEST_REPEATED = 300
_LEAST_REPEATED = 8
"Characters of a value that is a secret wherever it stands; shorter ones may be words."


_BY_NAME = frozenset({"password", "secret by its name"})
_BY_PLACE = _BY_NAME | {"secret beside its name", "credential in a call"}
_LEAST_NUMBERED = 5
"Values that differ in their numbers alone, from which on they are a series: placeholders, keys of translations."
_LONGEST_NUMBERED = 60
_NUMBER = re.compile(r"\d+")


def _numbered(text: str, kinds: Mapping[str, str]) -> set[str]:
    """Returns the values behind names that are one of a series."""
    shapes: dict[str, list[str]] = {}
    for value, kind in kinds.items():
        if kind in _BY_NAME and len(value) <= _LONGEST_NUMBERED and value[:1].isalpha():
            shapes.setdefault(_NUMBER.sub("0", value), []).append(value)
    found: set[str] = set()
    for values in shapes.values():
        parts = _NUMBER.split(values[0])
        # Passwords that one chooses over the years differ in one number.
        least = 2 if any(kinds[value] == "password" for value in values) else 1
        if len(parts) > least and len(parts[0]) > 2:
            series = re.compile(r"\d{1,12}".join(map(re.escape, parts)))
            if len(set(series.findall(text))) >= _LEAST_NUMBERED:
                found.update(values)
    return found


_NAME = re.compile(r"(?=\w{0,60}[a-z])[A-Za-z_]\w{5,60}")
_DEFINES = re.compile(
    r"(?:^|[\s;{}(])(?:(?:class|struct|enum|interface|trait|protocol|def|func|fn|function)|(?P<made>new))[ \t]{1,8}$"
)
"What stands before a name that a text defines, or makes one of."
_FURTHEST_BEFORE = 24
_LINE_BEFORE = 200
_MOST_PLACES = 40
"Where a value stands that are looked at."


_COMMENTED = re.compile(r"^[ \t]*(?:#|//|/?\*|--|;|%|\"|')|[ \t](?:#|//|--)[ \t]|/\*|<!--")
_WORDS_OF_NAME = 0.4
"Share of a name's characters that stand in its words; of a key that was drawn, hardly any do."
_CHOSEN = re.compile(r"\d{2,}[A-Za-z]?$|[A-Z][a-z]+\d[A-Z][a-z]+$")
"How a password ends that a person makes of a word: with a year or two digits, or a number for a word."
_NUMBERED = re.compile(r"([A-Za-z][a-z]+)(\d{2,4})[A-Z][a-z]+$")
"A word, its number and another word: chosen, unless the number belongs to the first word as in Base64."
_OF_NUMBER = re.compile(
    r"(?:arm|ascii|avx|base|bech|bit|byte|char|cp|crc|double|elf|es|fix|float|hex|iso|int|latin|mips|nat|posix|quad|real|rfc"
    r"|riscv|sparc|sse|ucs|uint|utf|vec|web|win|word|xx|xxhash)$",
    re.IGNORECASE,
)
"Words of encodings, numbers, processors and standards that a number follows."


def _named_in_code(text: str, language: str, kinds: Mapping[str, str]) -> set[str]:
    """Returns the values behind names that the text itself defines as a type or function, or makes one of.

    What looks drawn or chosen stays a secret: a test may well call a class what the password is.
    """
    if language in bare.LANGUAGES:
        return set()
    found: set[str] = set()
    for value, kind in kinds.items():
        if kind not in _BY_PLACE or _NAME.fullmatch(value) is None:
            continue
        if words_share(value) < _WORDS_OF_NAME or _is_chosen(value):
            continue
        place = text.find(value)
        for _ in range(_MOST_PLACES):
            if place < 0:
                break
            end = place + len(value)
            before = _DEFINES.search(text[max(0, place - _FURTHEST_BEFORE) : place])
            after = text[end : end + 1]
            is_code = _COMMENTED.search(text[line_start(text, place, _LINE_BEFORE) : place]) is None
            if (
                before is not None
                and is_code
                and (after in ("(", "{", "<") or (before["made"] is None and after in (" ", ":", "\n")))
            ):
                found.add(value)
                break
            place = text.find(value, end)
    return found


def _is_chosen(value: str) -> bool:
    """Tells whether a name looks like a password that a person made of words and a number."""
    if _CHOSEN.search(value):
        return True
    parts = _NUMBERED.search(value)
    return parts is not None and not (_OF_NUMBER.match(parts[1]) or is_method(parts[1] + parts[2]))


def _everywhere(text: str, kind: str, value: str) -> Iterator[Secret]:
    """Yields every place of a secret's value, whatever stands before it there."""
    if _LEAST_REPEATED <= len(value) <= _LONGEST_REPEATED and any(c.isdigit() for c in value):
        for secret in _every(text, kind, value):
            before, after = text[secret.start - 1 : secret.start], text[secret.end : secret.end + 1]
            if not (before.isalnum() or after.isalnum()):
                yield secret


def _without_overlap(found: list[Secret]) -> list[Secret]:
    kept: list[Secret] = []
    for secret in sorted(found, key=lambda secret: (secret.start, -secret.end)):
        if not kept or secret.start >= kept[-1].end:
            kept.append(secret)
        elif secret.end > kept[-1].end:
            kept[-1] = Secret(kept[-1].kind, kept[-1].start, secret.end)
    return kept


def fingerprint(value: str) -> str:
    """Names a finding in a list of allowed ones: the same value has the same name wherever it stands."""
    # A letter first: twelve digits alone would be read as a number where a list of them is written down.
    return "s" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def hint(value: str) -> str:
    """Returns as much of a secret as a list may show: its first characters, at most a quarter and at most four."""
    return value[: min(4, len(value) // 4)] + "…"


def masked_name(name: str) -> str:
    """Replaces the keys and tokens in a path."""
    if not is_random_looking(name):
        return name
    words = [*candidates(name), *candidates(re.sub(r"[/\\]", " ", name))]
    for _, value in announced.announced(words):
        name = name.replace(value, PLACEHOLDER)
    return name


def _search(text: str, language: str, depth: int) -> Iterator[Secret]:
    source = SearchedText(text, language)
    for kind, value in announced.announced(source.candidates):
        yield from _every(text, kind, value)
    for kind, start, end in _by_place(source):
        yield Secret(kind, start, end)
    if depth:
        for kind, value in encoded.encoded(source.candidates, lambda inner: any(_search(inner, "YAML", depth - 1))):
            yield from _every(text, kind, value)


def _by_place(source: SearchedText) -> Iterator[tuple[str, int, int]]:
    found = names.present(source)
    yield from keys.key_blocks(source)
    yield from urls.urls(source)
    yield from urls.headers(source)
    yield from commands.commands(source)
    yield from sql.sql(source)
    yield from calls.calls(source)
    yield from manifests.manifests(source)
    yield from tables.tables(source)
    yield from literals.named_literals(source, found)
    yield from literals.compared_literals(source)
    yield from bare.bare_values(source, found)
    yield from announced.beside_names(source)


def _every(text: str, kind: str, value: str) -> Iterator[Secret]:
    position = text.find(value)
    while position >= 0:
        yield Secret(kind, position, position + len(value))
        position = text.find(value, position + len(value))
