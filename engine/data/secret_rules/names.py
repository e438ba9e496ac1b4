"""Tells which identifiers say that a secret is their value, and which say something else."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.assets import asset
from engine.data.secret_rules.searched_text import SearchedText, is_random_looking, line_start, places
from engine.data.secret_rules.values import Evidence

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TAIL = r"(?P<tail>[\w.-]{0,40})(?![\w.-])"
"How an identifier goes on behind a stem."
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
_COMPOUND = re.compile(
    r"(?:key|access|value|val|code|word|phrase|base|prod|dev|live|data|str|string|text|auth|api)(?![a-z])|s(?![a-z])"
)
"Small letters behind a stem that are not the rest of another word."
_GIVEN = re.compile(r"\\{0,8}[\"'`*]{0,3}[ \t]*(?:\)?[ \t]{0,4}[!=]==?|[:=：>]|=>|<-|encoding=)")
"What follows a name that is a word of prose, too, where it is given a value."
_GIVEN_KEY = re.compile(r"[\w.-]{0,20}\\{0,8}[\"'`]?\]?[ \t]{0,8}(?::=|=>|[=:])[ \t]{0,8}\\{0,8}[\"'`]|[\"']>")
"What follows a key of one knows not what, where a literal is its value."
_ENVIRONMENT_KEY = re.compile(r"_KEY=[^\s\"'`$(]{16,200}(?:[ \t]*\\?$|\Z)", re.MULTILINE)
_RESOURCE = re.compile(r"arn:[\w:/*-]*$")
"An identifier of a cloud's resource, of which the name is a part."
_DATA = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_LONG_DATA = 40
"Characters of encoded data side by side; names are shorter."
_BEFORE = re.compile(r"([A-Za-z]+) $")
_ASSIGNED = re.compile(r"\s{0,8}(?::?=(?!=)|\()")
_SAYS_BEHIND = re.compile(r" (?:ids?|fingerprint|thumbprint|hash|digest)\b", re.IGNORECASE)
"What a name of several words ends with, whose value is no secret."
_FAILS = re.compile(r"\bfail(?:s|ed)?\b", re.IGNORECASE)
_TAKES = re.compile(
    r"set|equal|eq|put|add|push|append|insert|value|type|fill|send|text|write|assign|store|compare|match|is|to|of|from"
    r"|new|parse|decode|encode|encrypt|concat|replace|default|or|unwrap|expect|get|fetch|update|init|create|make|build|contain"
)
"How the names of calls begin that are given a value for the object before their dot."
_DERIVED = re.compile(
    r"iterations?|rounds|\b(?:ikm|okm|prk|dk_?len|key_?len)\b|\binfo\b[\"']?\s{0,4}[:=,]|hkdf|pbkdf|scrypt|argon|bcrypt|derive"
    r"|expected\w{0,20}[\"']?\s{0,4}[:=,]|vector",
    re.IGNORECASE,
)
"What stands beside a salt from which a key is derived, once or in a test."
_DECODES = re.compile(r"\s{0,8}:?=\s{0,8}[\w.:]{0,40}(?:hex|decode|unhexlify)\w{0,20}\(", re.IGNORECASE)
_AROUND_SALT = 200
_FILE_SYSTEM = re.compile(r"(?<![A-Za-z])(?:efs(?![a-z])|EFS|Efs(?![a-z]))|(?i:file[-_ ]?system)")
_AROUND_CREATION = 400
_REPEATED_CALL = re.compile(r"<clientToken>[\w-]{0,20}[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}<", re.IGNORECASE)
_PUBLIC = re.compile(
    r"public(?![ \t]{1,4}(?:static|final|const|readonly|override|byte|char|string|let|var|val)\b)|pub_?key"
    r"|ssh-(?:rsa|ed)|signed_curve25519"
)
"What names a public key; before a type, Java and C# say so of whoever may see the variable."
_SIGNED_BY = re.compile(r"\busing (?:RSA|DSA|ECDSA|EDDSA) $")
"What gpg says before a key's fingerprint."
_PUBLIC_ENTRY = re.compile(r"(?:public_?keys?|pub_?key|ssh-(?:rsa|ed)|signed_curve25519)[^{}]{0,60}[:=]\s{0,4}\{\n$")
_LONGEST = 40
"Characters of an identifier before a stem."
_SHORT_WORD = 2


@dataclass(frozen=True, slots=True)
class Stem:
    """The part of a name that tells of a secret."""

    kind: str
    evidence: Evidence
    text: str
    "In small letters."
    rest: str
    "How it may go on, as an expression."


@functools.cache
def _assets() -> dict[str, Any]:
    return tomllib.loads(asset("secret_names.toml").read_text(encoding="utf-8"))


@functools.cache
def _words(name: str) -> frozenset[str]:
    return frozenset(_assets()["words"][name].split())


@functools.cache
def _glued() -> dict[str, tuple[str, ...]]:
    return {stem: tuple(words.split()) for stem, words in _assets()["glued"].items()}


@functools.cache
def stems() -> tuple[Stem, ...]:
    """Returns all stems."""
    groups = (("password", Evidence.PASSWORD), ("secret by its name", Evidence.NAMED))
    return tuple(
        Stem(kind, evidence, text, rest)
        for (kind, evidence), table in zip(groups, ("password", "named"), strict=True)
        for text, rest in _assets()[table].items()
    )


def present(source: SearchedText) -> frozenset[str]:
    """Returns the stems that occur in a text."""
    found = source.found(_stem_words())
    several = (stem.text for stem in _of_several_words() if found.issuperset(_telling_words(stem)))
    return frozenset(found).union(text for text in several if text in source.lower)


@functools.cache
def _of_several_words() -> tuple[Stem, ...]:
    return tuple(stem for stem in stems() if " " in stem.text)


@functools.cache
def _stem_words() -> frozenset[str]:
    return frozenset(word for stem in stems() for word in _telling_words(stem))


@functools.cache
def _telling_words(stem: Stem) -> tuple[str, ...]:
    """Returns the words of a stem without those that are short, which are parts of most words."""
    words = stem.text.split()
    return tuple(word for word in words if len(word) > _SHORT_WORD or len(words) == 1)


def name_places(source: SearchedText, stem: Stem) -> list[int]:
    """Returns where a stem stands, but for what one letter tells to be another word: a keyword, a statement."""
    found = source.name_places.get(stem.text)
    if found is None:
        found = source.name_places[stem.text] = list(_name_places(source.text, source.lower, stem))
    return found


def _name_places(text: str, lower: str, stem: Stem) -> Iterator[int]:
    length = len(stem.text)
    for place in places(lower, stem.text):
        end = place + length
        after = text[end : end + 1]
        if after.islower() and after.isascii():
            if not stem.rest and not _COMPOUND.match(text, end):
                continue
            if stem.text == "pat" and (after != "s" or text[end + 1 : end + 2].islower()):
                continue  # "path", "pattern", which code is full of
        if (
            after == "\n"
            and stem.text == "pass"
            and not (text[place - 1 : place].isalnum() or text[place - 1 : place] in ("_", "-", "."))
        ):
            continue
        yield place


def name_start(text: str, place: int) -> int:
    """Returns where the identifier begins in which a stem stands."""
    begin = place
    while begin > 0 and place - begin < _LONGEST and (text[begin - 1].isalnum() or text[begin - 1] in "_.-:"):
        begin -= 1
    return begin


def says_other_thing(tail: str) -> bool:
    """Tells whether what follows a telling name says that its value is no secret: its id, its length, its file."""
    other = _words("other_thing")
    return any(word in other or (word.endswith("s") and word[:-1] in other) for word in _split(tail))


def evidence_of(text: str, match: re.Match[str], stem: Stem) -> Evidence | None:
    """Returns the evidence that the whole identifier around a stem gives; None where it says that it is no secret.

    Args:
        text: Where it stands.
        match: Begins behind the stem; its group "tail" is the rest of the identifier.
        stem: Which one.
    """
    start, tail_start = match.start() - len(stem.text), match.start("tail")
    tail = text[slice(*match.span("tail"))]
    if tail[:1].islower() and tail[0].isascii() and not _COMPOUND.match(tail):
        return None
    # "secret_key" is one; "token_key" is what a token is stored under.
    if says_other_thing(tail) or ("key" in _split(tail) and not stem.text.startswith("secret")):
        return None
    if (
        text[start].isupper()
        and text[tail_start - 1].isupper()
        and tail[:1].isupper()
        and not _COMPOUND.match(tail.lower())
    ):
        return None  # another word in capital letters
    begin = name_start(text, start)
    prefix = text[begin:start]
    if prefix[-1:].isalpha() and (glued := _glued().get(stem.text)) is not None:
        camel = text[start].isupper() and prefix[-1].islower()
        if not camel and not prefix.lower().endswith(glued):
            return None
    words = _split(prefix)
    before = words[-2:]
    if (
        text.startswith("{cipher}{", begin - 9)
        or _is_resource(prefix)
        or _RESOURCE.search(text, max(0, begin - _LONGEST), start) is not None
    ):
        return None
    if _within_data(text, start, tail_start):
        return None
    if stem.text == "token" and prefix.replace("_", "").replace("-", "").lower().endswith("clientrequest"):
        return None  # it tells calls that are repeated, as AWS names it
    if stem.text == "token" and words == ["creation"] and _creates_file_system(text, prefix, match):
        return None  # the same of EFS
    if stem.text == "token" and words == ["client"] and _REPEATED_CALL.match(text, begin - 1):
        return None  # the same in answers of EC2
    if stem.text == "salt" and "signature" in prefix.lower():
        return None
    if stem.text == "pass" and (
        (before and before[-1] in _words("other_pass")) or text[begin - 1 : begin + 5] == "=pass:"
    ):
        return None  # of several passes; a filter's argument
    if not _words("transformed").isdisjoint(words) or (len(words) > 2 and words[0] in _words("sentence")):
        return None
    if text[begin - 3 : begin] == "://" or (stem.text == "pw" and prefix.endswith(".") and text[begin - 1] == "/"):
        return None  # a host's name
    if _SAYS_BEHIND.match(text, match.end("tail")):
        return None
    if stem.text == "pass" and not prefix and _FAILS.search(text, max(0, begin - 60), begin):
        return None  # of values that are right and wrong
    if "." in tail and text.startswith("(", match.end("tail")) and not _TAKES.match(tail.rpartition(".")[2].lower()):
        return Evidence.ALONE  # another call of what the name is of
    if tail.endswith("Test") and text.startswith("(", match.end("tail")):
        return None
    if stem.text == "salt" and not _is_secret_salt(text, match, begin, words):
        return None
    if stem.text == "auth" and "data" in _split(tail):
        return None  # what an authenticator signs
    if any(word in _words("no_password" if stem.evidence == Evidence.PASSWORD else "no_secret") for word in before):
        return None
    if stem.text == "auth" and before[-1:] == ["basic"] and text.startswith("(", match.end("tail")):
        return None  # a call with a user and a password, which engine.data.secret_rules.calls looks at
    if stem.text == "key":
        return _evidence_of_key(text, match, before, prefix, begin)
    if stem.text in ("auth", "bearer", "otp", "jwt", "pat"):
        return Evidence.NEAR
    if stem.text == "pwd" and not prefix and text[begin - 1 : begin] == "$":
        return None  # the shell's variable
    if (
        stem.text == "pwd"
        and not prefix
        and text[begin - 1 : begin] in ("`", "(")
        and text[tail_start : tail_start + 1] in ("`", ")")
    ):
        return None  # the command
    if stem.text == "pass" and not prefix and not tail.strip(".-") and not _GIVEN.match(text, tail_start):
        return None  # a statement, or a word of prose
    return stem.evidence


def _creates_file_system(text: str, prefix: str, match: re.Match[str]) -> bool:
    """Tells whether a creation token is AWS's: by its spelling, or by what is created. Others open an account."""
    around = text[max(0, match.start() - _AROUND_CREATION) : match.end() + _AROUND_CREATION]
    return prefix.endswith("Creation") or _FILE_SYSTEM.search(around) is not None


def _is_secret_salt(text: str, match: re.Match[str], begin: int, words: Sequence[str]) -> bool:
    """Tells whether a salt is a program's own, and not a field of a salted hash or of a test's values."""
    if words:
        return not _words("secret_salt").isdisjoint(words)
    if _DERIVED.search(text, max(0, begin - _AROUND_SALT), match.end() + _AROUND_SALT):
        return False
    end = match.end("tail")
    if match.groupdict().get("close") or _DECODES.match(text, end):
        return False
    return _ASSIGNED.match(text, end) is not None


def _is_resource(prefix: str) -> bool:
    """Tells whether a name ends an identifier with colons: not C++'s and Ruby's namespaces, nor .NET's sections."""
    parts = prefix.replace("::", ".").split(":")
    # A long name's first part is cut off.
    return len(parts) > 3 and not all(part[:1].isupper() for part in parts[1:-1])


def _within_data(text: str, start: int, end: int) -> bool:
    """Tells whether a stem stands within encoded data, which holds all short ones somewhere."""
    first = start
    while first > 0 and text[first - 1] in _DATA and start - first < _LONG_DATA:
        first -= 1
    while end < len(text) and text[end] in _DATA and end - first < _LONG_DATA:
        end += 1
    return end - first >= _LONG_DATA and is_random_looking(text[first:end])


def _evidence_of_key(text: str, match: re.Match[str], before: list[str], prefix: str, begin: int) -> Evidence | None:
    if not prefix and text[begin - 1 : begin] in ("<", "/"):
        return None  # a tag of a list of properties
    if before and before[-1] in _words("public_key"):
        return None
    if not prefix and text.startswith(" ", match.end("tail")) and _SIGNED_BY.search(text, max(0, begin - 20), begin):
        return None
    if not prefix and (word := _BEFORE.search(text, max(0, begin - 20), begin)) is not None:
        before = [word[1].lower()]  # "Signing key: …"
        if before[0] in _words("public_key"):
            return None
    # A query's "key" is an API's.
    if not (prefix or match["tail"]) and begin > 0 and text[begin - 1] in "?&" and match.groupdict().get("op") == "=":
        return Evidence.NAMED
    if any(word in _words("before_key") for word in before) or prefix.lower().rstrip("_-. ").endswith(_glued()["key"]):
        return Evidence.NAMED
    line = line_start(text, begin, 100)
    if _PUBLIC.search(text[line:begin].lower()):
        return None
    if text.endswith("{\n", 0, line) and _PUBLIC_ENTRY.search(text[line_start(text, line - 1, 100) : line].lower()):
        return None  # what the entry is called
    if not prefix and text[slice(*match.span("tail"))].isdigit():
        return Evidence.ALONE  # one of several keys of entries
    told = before and before[-1] not in _words("plain_key")
    given = told and (_GIVEN_KEY.match(text, match.start("tail")) or _ENVIRONMENT_KEY.match(text, match.start() - 4))
    return Evidence.NEAR if given else Evidence.ALONE


def _split(identifier: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(identifier)]
