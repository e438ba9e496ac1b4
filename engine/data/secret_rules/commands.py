"""Passwords on the command lines of well-known programs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.values import Evidence, is_secretive

Found = tuple[str, int, int]
_WORD = r"(?:'(?P<a>[^'\n]{3,200})'|\"(?P<b>[^\"\n]{3,200})\"|(?P<c>[^\s'\"|;&<>\\]{3,200}))"
_OPTIONS = r"(?:[^\n|;]|\\\n){0,300}?"
_PIPED = rf"echo[ \t]+(?:-\w+[ \t]+)?{_WORD}[ \t]*\|[^\n]{{0,80}}(?:--password-stdin|chpasswd|sudo -S)"
_NETRC = rf"\S{{1,120}}\s{{1,20}}(?:(?:login|account)[ \t]+\S{{1,120}}\s{{1,20}})?passw(?:or)?d[ \t]+{_WORD}"
_COMMANDS = (
    # Texts that must all occur, and how the command goes; the value is the word that is kept.
    ((" -p", "mysql"), rf"\bmysql\w*\b{_OPTIONS}[ \t]-p{_WORD}"),
    ((" -p", "mariadb"), rf"\bmariadb\w*\b{_OPTIONS}[ \t]-p{_WORD}"),
    ((" -p", "sshpass"), rf"sshpass{_OPTIONS}-p[ \t]*{_WORD}"),
    ((" -p", "login"), rf"\w[^\n|;]{{0,40}}\blogin\b{_OPTIONS}[ \t]-p[ \t=]*{_WORD}"),
    ((" -p", "mongo"), rf"\bmongo\w*[ \t]{_OPTIONS}[ \t]-p[ \t]+{_WORD}"),
    ((" -p", "7z"), rf"\b7z\w?[ \t]+\w+[ \t]{_OPTIONS}[ \t]?-p{_WORD}"),
    ((" -P", "sqlcmd"), rf"\bsqlcmd\b{_OPTIONS}[ \t]-P[ \t]*{_WORD}"),
    ((" -P", "zip"), rf"\b(?:zip|unzip)[ \t]{_OPTIONS}[ \t]-P[ \t]*{_WORD}"),
    ((" -a ", "redis-cli"), rf"redis-cli{_OPTIONS}[ \t]-a[ \t]+{_WORD}"),
    ((" -w", "ldap"), rf"\bldap\w+[ \t]{_OPTIONS}[ \t]-w[ \t]*{_WORD}"),
    (("%", " -U", "client"), rf"(?:smb|rpc)client\b{_OPTIONS}-U[ \t]*[\"']?[^\s%'\"]{{1,60}}%{_WORD}"),
    (("pass:",), rf"-pass(?:in|out)?[ \t]+[\"']?pass:{_WORD}"),
    (("/pass:",), rf"/pass:{_WORD}"),
    (("htpasswd",), rf"htpasswd[ \t]+-\w{{0,10}}b\w{{0,10}}[ \t]+\S{{1,80}}[ \t]+\S{{1,80}}[ \t]+{_WORD}"),
    (("/user:", "net use"), rf"net use[ \t]+(?:\S{{1,60}}[ \t]+){{0,4}}?/user:\S{{1,60}}[ \t]+{_WORD}"),
    (("net user",), rf"net user[ \t]+[\w.-]{{1,60}}[ \t]+{_WORD}"),
    (("--passphrase",), rf"--passphrase[ \t=]+{_WORD}"),
    (("<<<",), rf"(?:secret|passw\w*|token)[ \t]*<<<[ \t]*{_WORD}"),
    (("secret set",), rf"secret set[ \t]{_OPTIONS}(?:--body|-b)[ \t=]+{_WORD}"),
    (("kv put",), rf"kv put[ \t]{_OPTIONS}[ \t]\w{{1,40}}={_WORD}"),
    (("echo", "--password-stdin"), _PIPED),
    (("echo", "chpasswd"), _PIPED),
    (("echo", "| sudo -S"), _PIPED),
    (("requirepass",), rf"requirepass[\"']?,?[ \t]+{_WORD}"),
    (("masterauth",), rf"masterauth[ \t]+{_WORD}"),
    (("bindpw",), rf"bindpw[ \t]+{_WORD}"),
    (("rootpw",), rf"rootpw[ \t]+{_WORD}"),
    (("machine", "passw"), rf"machine[ \t]+{_NETRC}"),
    (("login ", "passw"), rf"login[ \t]+{_NETRC}"),
)  # fmt: skip
_COMPILED = tuple(
    (hints, re.compile(pattern, 0 if any(hint != hint.lower() for hint in hints) else re.IGNORECASE))
    for hints, pattern in _COMMANDS
)
_CURL = re.compile(rf"(?:[ \t\"'](?:-u|--(?:proxy-)?user)[ \t=]+|[\"'](?:-u|--user)[\"'],\s{{0,20}}){_WORD}")


def commands(text: str, lower: str) -> Iterator[Found]:
    """Passwords on command lines of well-known programs."""
    present: dict[str, bool] = {}
    for hints, pattern in _COMPILED:
        for hint in hints:
            if hint not in present:
                present[hint] = hint in (text if hint != hint.lower() else lower)
            if not present[hint]:
                break
        else:
            for match in pattern.finditer(text):
                yield from _command_value(text, match)
    if "-u" in text and ("curl" in lower or "http" in lower):
        for match in _CURL.finditer(text):
            start, end = match.span(match.lastgroup or 0)
            user, colon, value = text[start:end].partition(":")
            if colon and not re.match(r"\d+$", user) and is_secretive(value, Evidence.PASSWORD):
                yield "password on a command line", start + len(user) + 1, end


def _command_value(text: str, match: re.Match[str]) -> Iterator[Found]:
    start, end = match.span(match.lastgroup or 0)
    value = text[start:end]
    if "chpasswd" in match[0] and ":" in value:
        start += value.index(":") + 1
        value = text[start:end]
    if is_secretive(value, Evidence.PASSWORD) and not value.startswith("-"):
        yield "password on a command line", start, end
