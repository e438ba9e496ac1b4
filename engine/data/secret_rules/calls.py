"""Finds credentials in the calls that take them, behind a first string that is a user or host."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.literals import HEX, IN_LIST, LOGIN_OF_WORDS, NUMBER_NEXT, literal
from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secret_rules.values import Evidence, is_secretive

Found = tuple[str, int, int]
_CALLS = (
    # A part that one search tells to be absent, calls that hold it, and what is known of their strings.
    ("auth", ("basicauth", "basic_auth", "authenticationtoken", "authenticate("), Evidence.PASSWORD),
    ("auth", ("auth=", "auth:", "auth("), Evidence.PASSWORD),
    ("credential", ("networkcredential", "credentials(", "credential("), Evidence.PASSWORD),
    ("awscredentials", ("awscredentials",), Evidence.NAMED),
    ("login", ("login(",), Evidence.PASSWORD),
    ("connect", ("connect(", "getconnection("), Evidence.PASSWORD),
    ("sequelize", ("sequelize(",), Evidence.PASSWORD),
    ("wifi.begin", ("wifi.begin(",), Evidence.PASSWORD),
    ("sp_addlogin", ("sp_addlogin",), Evidence.PASSWORD),
    ("btoa", ("btoa(",), Evidence.PASSWORD),
    ("b64encode", ("b64encode(",), Evidence.PASSWORD),
    ("buffer.from", ("buffer.from(",), Evidence.PASSWORD),
    ("mysqli", ("mysqli(",), Evidence.PASSWORD),
    ("pdo", ("pdo(",), Evidence.PASSWORD),
    ("sign", ("signin(", "sign_in("), Evidence.PASSWORD),
    ("jwt.", ("jwt.sign(", "jwt.encode(", "jwt.decode(", "jwt.verify("), Evidence.NAMED),
    ("hmac", ("hmac.new(", "createhmac("), Evidence.NAMED),
    ("secretkeyspec", ("secretkeyspec(",), Evidence.NAMED),
    ("session", ("session(",), Evidence.NEAR),
    ("client", ("client(",), Evidence.NEAR),
    ("createcipher", ("createcipher",), Evidence.NEAR),
    ("hashsync", ("hashsync(",), Evidence.PASSWORD),
    ("hashpw", ("hashpw(",), Evidence.PASSWORD),
    ("password_hash", ("password_hash(",), Evidence.PASSWORD),
    ("make_password", ("make_password(",), Evidence.PASSWORD),
    ("ldap_bind", ("ldap_bind(",), Evidence.PASSWORD),
    ("ftp", ("ftp(", "ftp_login("), Evidence.PASSWORD),
    ("fernet", ("fernet(",), Evidence.NAMED),
    ("stripe", ("stripe(",), Evidence.NAMED),
    ("cookieparser", ("cookieparser(",), Evidence.NAMED),
    ("bcrypt.", ("bcrypt.hash(", "bcrypt.compare(", "bcrypt.comparesync("), Evidence.PASSWORD),
)  # fmt: skip
_PARTS = frozenset(part for part, _, _ in _CALLS)
_FIRST_TOO = frozenset(
    {"hmac", "secretkeyspec", "hashsync", "hashpw", "password_hash", "make_password", "bcrypt.", "fernet", "stripe"}
    | {"cookieparser"}
)
"Calls whose first string may be the key."
_FILLED = re.compile(
    r"passw\w{0,20}[\"']?[^\n\"'`;]{0,6}[\"'`]"
    r"(?:[^\n\"'`;]{0,30}\.(?:type|fill|send_?keys|set_?value|type_?text)\([ \t]{0,4}|,[ \t]{0,4})(?P<q>[\"'`])"
)
"A field that a test of an interface finds by its name and fills in."
_CHARACTERS = re.compile(r"\"(?P<value>[^\"\n\\]{5,200})\"\.toCharArray\(\)")
"Java takes passwords as arrays, which can be wiped."
_SCHEMES = frozenset(["json", "yaml", "xml", "jdbc", "r2dbc", "urn", "data", "file", "sqlite"])
"What an address of a database begins with, behind which its user and password are given."
_IDENTIFIES = re.compile(r"(?:\b|_)(?:client_?|app_?|user_?|tenant_?)?id:\s{0,4}$")
"What an argument's name ends with that is no credential."
_ARGUMENT = re.compile(r"(?P<gap>[^\n\"'`;\\=]{0,60}(?:\n[ \t]{0,60})?)(?P<q>[\"'`])")


def calls(source: SearchedText) -> Iterator[Found]:
    """Yields the later ones of the strings that a call takes as credentials; the first is a user or host."""
    text, lower = source.text, source.lower
    if source.has("passw"):
        for match in _FILLED.finditer(lower):
            span = literal(text, match.start("q"))
            if (
                span is not None
                and is_secretive(text[slice(*span)], Evidence.PASSWORD)
                and not LOGIN_OF_WORDS.search(lower, max(0, match.start() - 40), match.start())
                and not (
                    IN_LIST.search(text, max(0, match.start() - 60), match.start())
                    and NUMBER_NEXT.match(text, span[1])
                    and HEX.fullmatch(text, *span)
                )
            ):
                yield "credential in a call", *span
    if source.has("tochararray"):
        for match in _CHARACTERS.finditer(text):
            if is_secretive(match["value"], Evidence.PASSWORD):
                yield "credential in a call", *match.span("value")
    found = source.found(_PARTS)
    for part, names, evidence in _CALLS:
        if part in found:
            for name in names:
                position = lower.find(name)
                while position >= 0:
                    position += len(name)
                    yield from _arguments(text, lower, position, evidence, part)
                    position = lower.find(name, position)


def _arguments(text: str, lower: str, place: int, evidence: Evidence, part: str) -> Iterator[Found]:
    for number in range(5):
        argument = _ARGUMENT.match(lower, place)
        if argument is None or ")" in argument["gap"].rstrip("([{ ")[1:]:
            return
        # Variables before it are arguments, too.
        place_of = number + argument["gap"].lstrip(",").count(",")
        if number and argument["gap"].lstrip()[:1] == "+":
            return  # the same argument goes on
        span = literal(text, argument.start("q"))
        if span is not None and _IDENTIFIES.search(argument["gap"]):
            place = span[1] + 1
            continue
        if span is None or span[1] - span[0] > 400:
            return
        user, colon, value = text[slice(*span)].partition(":")
        if user.lower() in _SCHEMES:
            place = span[1] + 1
            continue
        if value.startswith(("//", '"')):
            return  # a URL, which is looked at for itself, or a tag of a field
        if not number and colon and user.isalnum() and user.isascii():
            # "user:password", to be encoded.
            span = span[0] + len(user) + 1, span[1]
            if is_secretive(value, evidence):
                yield "credential in a call", *span
        elif place_of == 0 and part == "login" and text.startswith(")", span[1] + 1):
            if is_secretive(text[slice(*span)], Evidence.NEAR):
                yield "credential in a call", *span
        elif (place_of or evidence == Evidence.NEAR or part in _FIRST_TOO) and is_secretive(
            text[slice(*span)], evidence
        ):
            yield "credential in a call", *span
        place = span[1] + 1
        if text[place : place + 1] not in (",", " ", "\n", "."):
            return
