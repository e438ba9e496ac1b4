"""Calls that take credentials: the later ones of their strings, whose first is a user or host."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.literals import literal
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
)  # fmt: skip
_FIRST_TOO = ("hmac", "secretkeyspec")
"Calls whose first string may be the key."
_ARGUMENT = re.compile(r"(?P<gap>[^\n\"'`;\\=]{0,60}(?:\n[ \t]{0,60})?)(?P<q>[\"'`])")


def calls(source: SearchedText) -> Iterator[Found]:
    """The later ones of several strings that a call which takes credentials is given; the first is a user or host."""
    text, lower = source.text, source.lower
    for part, names, evidence in _CALLS:
        if source.has(part):
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
        span = literal(text, argument.start("q"))
        if span is None or span[1] - span[0] > 400:
            return
        user, colon, value = text[slice(*span)].partition(":")
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
