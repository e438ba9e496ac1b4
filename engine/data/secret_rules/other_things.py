"""Tells values that stand where secrets stand, but are something else: code, addresses, names, ciphertext, words."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from engine.data.secret_rules.encoded import decoded_ascii

_CIPHERTEXT = re.compile(
    r"^<enc[\w:-]{0,20}>|^AQICAH|^CiQA|^\{cipher\}|^\$ANSIBLE_VAULT|^ENC[\[(]|^Fe26\.2\*\*|^vault:v\d:|^encrypted:|^\d\.[A-Za-z0-9+/]{20,}={0,2}(?:\||$)|^\$\{?encrypted"
)
"How what is encrypted begins: by name, by AWS's and Google's key services, by Ansible, sops, iron, Vault."
_ADDRESS = re.compile(
    r"^(?=[0-9a-fA-F]*:[0-9a-fA-F]*:)(?:[0-9a-fA-F]{0,4}:){2,8}(?:[0-9a-fA-F]{0,4}|\d{1,3}(?:\.\d{1,3}){3})(?:%\w{1,20})?(?:/\d{1,3})?$"
    r"|^(?:[0-9a-fA-F]{2}[:-]){5,}[0-9a-fA-F]{2}$|^\[[0-9a-fA-F:.]{2,45}\](?::\d{1,5})?$|^\d{1,3}(?:\.\d{1,3}){3}(?:[:/]\d{1,5})?$"
)
"Of networks: IPv6, MAC, IPv4; and fingerprints."
_REGION = re.compile(r"^[a-z]{2,6}(?:-gov)?-[a-z]{4,10}-?\d{1,2}[a-z]?$")
"A cloud's region or zone."
_SLOT = re.compile(
    r"%(?:\d\$)?[+#-]?\d{0,3}[sdvqxi](?![A-Za-z0-9])"
    r"|\{\d{0,2}(?:[:!][^{}]{0,12})?\}|<[a-z][\w .-]{1,40}>|\[[A-Za-z][A-Za-z_ -]{2,40}\]"
    r"|\{\{?[ ]?[a-z][\w.]{1,40}[ ]?\}|(?<![\w$])\$[a-z][A-Za-z]{3,40}(?!\w)|\w\$[a-z]{3,30}(?:[A-Z][a-z]{3,30}){1,4}$"
)
"What a value is put into, or a word that stands for one."
_CODE = re.compile(
    r"^[*&!(]{0,2}(?:\[\]|map\[)?[*&]?[A-Za-z_]\w{0,40}(?:(?:\.|::|->)[A-Za-z_]\w{0,60}){0,8}"
    r"(?:\(\)|[({\[]|\{\}|\]\(|\)\.\w+)\)?[,;]?$"
    r"|^[*&][a-z]\w{0,40}\.[A-Z]\w{0,60}$|^\[\]\w{1,40}\{?|^(?:[a-z]{2,10}\.){1,3}[A-Z]\w{1,40}$"
    r"|\.[a-z_]{3,40}\(|\w\(\[\]byte\(|^[A-Z]?[a-z_-]{2,30}=[({\[]?$"
    r"|^\(\w[\w.]{1,60}\)\.\w|^[.:]{1,2}[a-z]\w{2,60}(?:\(\)?)?$"
    r"|^(?:\[\]|[*&]){1,3}[a-z]\w{0,40}\.[A-Z]|^[A-Za-z]\w{2,30}:\d{1,6}$|^new [A-Z]|^[A-Z]{3,10}\d{4,8}$"
    r"|^(?:[A-Z]?[a-z]{2,15})(?:[A-Z][a-z]{1,15}){1,4}\d{4,}$|^func\(|=>\s|^[^)\]]{1,80}[\w\"'](?:\)\]|\]\))\W{0,3}$|^\w+\(\w*\)$|^(?:[a-z]{2}\w{0,30}\.){1,6}[a-z]\w{1,30}\($"
)
"Types, calls, constants of modules, the start of a literal."
_EXPRESSION = re.compile(
    r"^[A-Za-z_]\w{0,60}(?:(?:\.|::|->)[A-Za-z_]\w{0,60}){0,6}(?:[)\]},;]{1,4}$|<[A-Za-z][\w., ]{0,60}>+$)"
    r"|^[A-Za-z_]\w{0,60}(?:(?:\.|::|->)[A-Za-z_]\w{0,60}){1,6}\(\)|^\\\(|^unix:|\*\*[a-z]{3,20}\*\*|^\([A-Za-z][\w-]{0,40}$|^[,)}\]]{1,3}[a-z{]\w{0,20}[.:=(]"
    r"|^[a-z]\w{0,20}(?:::\w{1,40}){1,6}$|^\{[A-Za-z_]\w{0,40}\??\.[A-Za-z_]\w{0,40}"
)
"Calls, types, names before a bracket that closes, what stands between two literals."
_SEPARATORS = re.compile(r"[/:|,;&=(){}<>\[\]]+")
_BARS = re.compile(r"[|:&;=(){}<>\[\]]{1,3}")
_ALL_SEPARATORS = re.compile(r"[/:|,;&=(){}<>\[\]_.-]+")
_WORDS = re.compile(r"[A-Za-z](?:[A-Za-z_.-]{0,80}[A-Za-z])?\d{0,3}$")
_CASED = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]")
_LONG_LETTERS = re.compile(r"[A-Za-z]{4,}")
_SHORT_NAME = re.compile(r"[A-Za-z]{1,20}\d{0,3}$")
_FILE_IN = re.compile(
    r"/[^/]{0,100}\.(?:png|jpe?g|gif|svg|webp|ico|pdf|html?|js|json|css|txt|md|xml|ya?ml|zip|gz|woff2?)(?:[/?#]|$)"
)
_ENCODED = re.compile(
    r"(?=[^a-z]{0,40}[a-z])(?=[^A-Z]{0,40}[A-Z])(?:[A-Za-z0-9+/]{20,200}={1,2}|(?=\D{0,40}\d)[A-Za-z0-9+/]{20,200})$"
)
"What may be data in base64, whose letters between slashes happen to look like words."
_LEAST_PIECE = 4.0
"Letters of a word in names that are written as one; in data the case changes more often."
_MOST_WORDS = 0.25
"Share of a value that words between marks may make up."
_DEFINITION = re.compile(
    r"^-{1,2}[A-Za-z][\w-]{0,30}=|(?:^|[?&,:;])[a-z_]{2,30}=[\w./-]{1,60}[?&,:;][a-z_]{2,30}[=?&:;]"
    r"|^[a-z]{1,20}(?:_[a-z]{1,20}){1,4}=[\w.:/,-]{1,80}$|^\+?\w{1,40}(?::\w{1,40}){1,4}=\w{1,40}$"
    r"|^[A-Z][A-Za-z]{2,30}[?!]$|^(?:[A-Z][a-z]{1,20}){2,6}#[a-z]{1,20}(?:[A-Z][a-z]{1,20}){1,6}$|#S256$|^(?:[A-Z]{2,6}=\w{0,8};){1,10}$|^(?:/(?:C|ST|L|O|OU|CN|DC|UID)=[^/=]{0,60}){1,10}$|^(?:CN|OU|O|L|ST|C|DC|UID)=|^[a-z]{2,10}:\d{1,4}$|^[A-Za-z]{1,3}(?:\|[A-Za-z]{1,3}){3,60}$"
    r"|^[\\\"']{0,6},[\\\"']"
    r"|^[a-z]{3,15}(?:To|Of|By|In|[A-Z][a-z]{2,15}\d{0,3}){2,6}$"
)
"Arguments with their names."
_CONSTANT = re.compile(
    r"^[A-Z][A-Z0-9]{2,40}_[A-Z]{2,40}$|^(?:fk|idx|ix|uniq?|uq|pk|FK|IDX|IX|UNIQ?|UQ|PK)_[0-9a-fA-F]{8,40}$|^[A-Z][A-Z0-9]{0,40}(?:_[A-Z0-9]{1,40}){2,20}$|^[A-Z]{3,40}(?:_[A-Z]{1,40}\d{0,3}){1,20}$"
)
_CHOICES = re.compile(
    r"^\d{2,5}(?:,[A-Za-z][\w.-]{0,60}(?::\d{2,5}|=\w{1,20})){1,9}$|^[A-Z_*]{4,60}\|[A-Z_*]{4,60}(?:\||$)|^[+!-]?[A-Z][A-Z0-9.-]{0,60}(?::[+!-]?[A-Z0-9.-]{1,60}){1,60}$|^[+!-][A-Z][A-Z0-9.]*-[A-Z0-9.-]+$|^[A-Z]{1,6}(?:-\d{1,7}){1,3}$|^\d{4}-\d\d-\d\dT\d|^\d:\d{6,}:[a-z]{3,7}:"
)
"Algorithms to choose from, numbers of tickets, identifiers of applications."
_FIRST_FIELD = re.compile(r"^[a-z]=[^,]{1,400}(?:,[a-z]=[^,]{1,400}){1,6}$|^[\w.]{1,20},[\w.-]{2,40}=")
_IDENTIFIER_PART = re.compile(
    r"(?:[A-Z]{1,8}|[A-Z]?[a-z]{1,15}(?:[A-Z][a-z]{1,15}){0,4})\d{0,5}|\d{1,4}|[1-9]\d{4,5}|(?P<short>[a-z]\d{1,2}[a-z])"
)
_PUBLIC_POINT = re.compile(r"^B[A-P][A-Za-z0-9+/_-]{85,178}={0,2}$")
_PUBLIC_RSA = re.compile(
    r"^MII[A-Z][A-Za-z0-9+/]{2}CC[A-Z][A-Za-z0-9+/]{2}gAwIBAgI|^MII[A-Z][A-Za-z0-9]gKCA[QgYI]EA|^MIGJAoGBA|^3082[0-9a-f]{4}3082[0-9a-f]{4}(?:a003020102|0201003)|^0[23][0-9a-f]{64}$|^04[0-9a-f]{128}$|^(?:ed25519|curve25519):"
    r"|^[UAONXC][A-Z2-7]{55}$"
)
_POINTS = frozenset({87, 88, 130, 132, 178, 180})
"Lengths of points of elliptic curves in base64."
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_NAME = re.compile(r"^[\w./:,=|#%*@+\[\]{}()&?<>~!-]+$")
_PARTS = re.compile(r"[-_./:,=|#%*@+\[\]{}()&?<>~!]+")
_FINGERPRINTS = re.compile(r"^(?:0x(?:[0-9A-F]{16}|[0-9A-F]{40})|[0-9A-F]{16,40}(?:,[0-9A-F]{16,40}){1,20})$")
_ABBREVIATION = re.compile(r"[A-Z]{0,4}\d*|[a-z]{1,2}\d*")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_LONG_WORD = re.compile(r"[a-z]{8}")
_LIST = re.compile(r"^[\w.-]{1,12}(?:[,|;][\w.-]{1,12}){1,20}$")
_BASE64 = re.compile(r"^[A-Za-z0-9+/_-]{6,400}={0,2}$")
_PROSE = re.compile(r"^(?:[AI] )?[A-Za-z][A-Za-z']{1,20}(?:[ ,.!?-]{1,2}[A-Za-z][A-Za-z']{0,20}){0,30}[.!?]?$")


def is_ciphertext(value: str) -> bool:
    """Tells whether a value says that it is encrypted."""
    return _CIPHERTEXT.search(value) is not None


def is_address(value: str) -> bool:
    """Tells whether a value is an address of a network, a fingerprint, or a cloud's region."""
    return _REGION.search(value) is not None or all(map(_ADDRESS.search, value.split(",")))


_REPEATED = re.compile(r"(.{2,8}?)\1{2,}")
_LEAST_REPEATED = 24
"Characters of a value that one unit makes up; a person may choose a shorter one."


def is_monotonous(value: str) -> bool:
    """Tells whether one or two characters, or one unit, make up most of a value, as in identifiers of examples.

    People make keys of a prescribed length of units such as Kx9!: those of letters or digits alone are meant.
    """
    if len(value) >= _LEAST_REPEATED and (repeated := _REPEATED.match(value)) is not None:
        unit, rest = repeated[1], value[repeated.end() :]
        if unit.startswith(rest) and (unit.isdigit() or unit.isalpha() or _counts(unit)):
            return True
    solid = [c for c in value if c.isalnum()]
    counts = [count for _, count in Counter(solid).most_common(1)]
    groups = [group for group in value.split("-") if group]
    alike = sum(len(set(group)) == 1 for group in groups)
    return (
        bool(counts)
        and len(solid) >= 8
        and (counts[0] > len(solid) * 0.5 or (len(groups) > 3 and alike * 2 >= len(groups)))
    )


def _counts(unit: str) -> bool:
    """Tells whether characters follow each other in their order, digits from 0 or 1 behind letters: abcd1234."""
    return all(ord(b) - ord(a) == 1 or (a.isalpha() and b in "01") for a, b in pairwise(unit))


def is_counted_up(value: str) -> bool:
    """Tells whether hexadecimal digits or base64 are bytes in their order, as test vectors have them."""
    try:
        data = bytes.fromhex(value.removeprefix("0x"))
    except ValueError:
        data = _decoded(value) if _BASE64.match(value) else b""
    steps = sum(abs(second - first) == 1 for first, second in pairwise(data))
    return len(data) >= 8 and steps >= 0.8 * (len(data) - 1)


def is_template(value: str) -> bool:
    """Tells whether a value has slots that something is put into."""
    return _SLOT.search(value) is not None


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def is_code(value: str) -> bool:
    """Tells whether a value is an expression, a type or arguments with their names."""
    return _CODE.search(value) is not None or is_identifier(value, 3)


def is_expression(value: str) -> bool:
    """Tells whether a value is a call, a type or a name with a bracket that closes: no password either."""
    return _EXPRESSION.search(value) is not None


def _mean_piece(name: str) -> float:
    pieces = _CASED.findall(name)
    return sum(map(len, pieces)) / len(pieces) if pieces else 0.0


def has_word_parts(value: str, is_wordlike: Callable[[str], bool], *, alone: bool) -> bool:
    """Tells whether words stand between a value's slashes, colons and brackets, as in paths, names and tags.

    Args:
        value: What is looked at.
        is_wordlike: Whether letters follow each other as in words.
        alone: Whether nothing else tells of a secret: dashes part words, too.
    """
    parts = [part for part in (_ALL_SEPARATORS if alone else _SEPARATORS).split(value) if part]
    if len(parts) < 2:
        return False
    encoded = _ENCODED.match(value) is not None
    words = sum(
        len(part)
        for part in parts
        if _WORDS.match(part)
        and any(map(is_wordlike, _LONG_LETTERS.findall(part)))
        and not (encoded and _mean_piece(part) < _LEAST_PIECE)
    )
    plain = len(parts) > 2 and not (encoded and value[-1] == "=") and all(map(_SHORT_NAME.match, parts))
    named = _UUID.search(value) is not None or _FILE_IN.search(value) is not None or (alone and value[0] == "/")
    return plain or named or words > _MOST_WORDS * len(value)


def is_identifier(value: str, least: int) -> bool:
    """Tells whether a value is so many parts of a name or more, each a word or an abbreviation with a number behind."""
    parts = re.split(r"[_.-]", value)
    if len(parts) < least or len(value) > 60:
        return False
    found = [_IDENTIFIER_PART.fullmatch(part) for part in parts]
    # One may be an abbreviation such as k8s; several are drawn, as in x7q-k9z-m2p-w4t.
    return all(found) and sum(part is not None and part["short"] is not None for part in found) < 2


def has_rules(value: str, is_wordlike: Callable[[str], bool]) -> bool:
    """Tells whether words stand between a value's bars and brackets, as in rules of validation: no password either."""
    parts = [part for part in _BARS.split(value) if part]
    words = sum(len(part) for part in parts if _WORDS.match(part) and is_wordlike(re.sub(r"[^A-Za-z]", "", part)))
    return len(parts) > 1 and words > 0.6 * len(value)


def is_definition(value: str) -> bool:
    """Tells whether a value is arguments with their names, a constant's name, or a list to choose from."""
    return any(pattern.search(value) for pattern in (_DEFINITION, _CONSTANT, _CHOICES, _FIRST_FIELD))


def is_public(value: str) -> bool:
    """Tells whether a value is a public key by how it begins and how long it is, or a fingerprint."""
    return _PUBLIC_RSA.search(value) is not None or (len(value) in _POINTS and _PUBLIC_POINT.match(value) is not None)


def is_composed(value: str) -> bool:
    """Tells whether a value is made up of several UUIDs, or of one and of words."""
    rest, count = _UUID.subn("", value)
    return count > 1 or (count == 1 and _LONG_WORD.search(rest) is not None)


def is_list(value: str) -> bool:
    """Tells whether a value is several short ones with commas between, or fingerprints of OpenPGP keys."""
    return _LIST.match(value) is not None or _FINGERPRINTS.match(value) is not None


def is_name(value: str, is_wordlike: Callable[[str], bool]) -> bool:
    """Tells whether a value is words and abbreviations with marks between: a path, a key of settings, a resource."""
    if not _NAME.match(value) or not _PARTS.search(value.strip("!?")):
        return False
    words = other = 0
    for part in _PARTS.split(value):
        if _ABBREVIATION.fullmatch(part):
            continue
        for piece in _PIECE.findall(part):
            # Three letters are as often a word by chance.
            if (len(piece) >= 4 or piece == part) and piece[0].isalpha() and len(piece) >= 3 and is_wordlike(piece):
                words += len(piece)
            elif piece[0].isalpha():
                other += len(piece)
    digits = sum(c.isdigit() for c in value)
    return words >= 0.8 * (words + other) and words >= 0.6 * len(value) and digits <= 0.3 * len(value)


def encoded_words(value: str) -> str | None:
    """Returns the text that a value is base64 of, if it is one."""
    return decoded_ascii(value) if _BASE64.match(value) else None


def is_prose(text: str) -> bool:
    """Tells whether a text is words."""
    return _PROSE.match(text) is not None
