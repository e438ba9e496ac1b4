"""Finds passwords on the command lines of well-known programs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secret_rules.values import Evidence, is_secretive

Found = tuple[str, int, int]
_WORD = r"(?:'(?P<a>[^'\n]{3,200})'|\"(?P<b>[^\"\n]{3,200})\"|(?P<c>[^\s'\"|;&<>\\]{3,200}))"
_OPTIONS = r"(?:[^\n|;]|\\\n){0,300}?"
_PIPED = rf"echo[ \t]+(?:-\w+[ \t]+)?{_WORD}[ \t]*\|[^\n]{{0,80}}(?:--password-stdin|chpasswd|sudo -s)"
_HTPASSWD = r"(?:-\w{1,10}[ \t]{1,8}){1,5}(?:\S{1,80}[ \t]{1,8}){1,2}?"
_SQLPLUS = r"(?P<e>[^\s'\"@/|;&<>\\]{3,200})"
_ENDS = r"(?:\n|\Z|[|;&#>])"
_NETRC = rf"\S{{1,120}}\s{{1,20}}(?:(?:login|account)[ \t]+\S{{1,120}}\s{{1,20}})?passw(?:or)?d[ \t]+{_WORD}"
_COMMANDS = (
    # Parts of words that must all occur, and how the command goes; the value is the word that is kept.
    (("\n-p", "mysql"), rf"\bmysql\w*\b{_OPTIONS}[ \t]-p{_WORD}"),
    (("\n-p", "mariadb"), rf"\bmariadb\w*\b{_OPTIONS}[ \t]-p{_WORD}"),
    (("\n-p", "sshpass"), rf"sshpass{_OPTIONS}-p[ \t]*{_WORD}"),
    (("\n-p", "login"), rf"\w[^\n|;]{{0,40}}\blogin\b{_OPTIONS}[ \t]-p[ \t=]*{_WORD}"),
    (("\n-p", "mongo"), rf"\bmongo\w*[ \t]{_OPTIONS}[ \t]-p[ \t]+{_WORD}"),
    (("\n-p", "7z"), rf"\b7z\w?[ \t]+\w+[ \t]{_OPTIONS}[ \t]?-p{_WORD}"),
    (("\n-p", "sqlcmd"), rf"\bsqlcmd\b{_OPTIONS}[ \t]-P[ \t]*{_WORD}"),
    (("\n-p", "zip"), rf"zip[ \t]{_OPTIONS}[ \t]-P[ \t]*{_WORD}"),
    (("\n-a\n", "redis-cli"), rf"redis-cli{_OPTIONS}[ \t]-a[ \t]+{_WORD}"),
    (("\n-w", "ldap"), rf"\bldap\w+[ \t]{_OPTIONS}[ \t]-w[ \t]*{_WORD}"),
    (("smbclient", "%"), rf"smbclient\b{_OPTIONS}-U[ \t]*[\"']?[^\s%'\"]{{1,60}}%{_WORD}"),
    (("pass:",), rf"-pass(?:in|out)?[ \t]+[\"']?pass:{_WORD}"),
    (("/pass:",), rf"/pass:{_WORD}"),
    (("htpasswd",), rf"htpasswd[ \t]+{_HTPASSWD}{_WORD}[ \t]*{_ENDS}"),
    (("/user:",), rf"net use[ \t]+(?:[a-z*]:?[ \t]+)?\\\\\S{{1,120}}[ \t]+{_WORD}[ \t]+/user:"),
    (("/user:",), rf"net use[ \t]+(?:\S{{1,60}}[ \t]{{1,8}}){{0,4}}?/user:\S{{1,60}}[ \t]+{_WORD}"),
    (("\nnet\n", "\nuser\n"), rf"net user[ \t]+[\w.-]{{1,60}}[ \t]+{_WORD}"),
    (("rabbitmqctl",), rf"rabbitmqctl[ \t]+(?:add|change|authenticate)_\w{{4,8}}[ \t]+\S{{1,60}}[ \t]+{_WORD}"),
    (("mysqladmin", "passw"), rf"mysqladmin\b{_OPTIONS}[ \t]password[ \t]+{_WORD}"),
    (("\n-p", "ipmitool"), rf"ipmitool\b{_OPTIONS}[ \t]-P[ \t]+{_WORD}"),
    (("freerdp", "/p:"), rf"freerdp\b{_OPTIONS}[ \t]/p:{_WORD}"),
    (("lftp",), rf"\blftp\b{_OPTIONS}-u[ \t]+[\w.@-]{{1,60}},{_WORD}"),
    (("sqlplus",), rf"sqlplus[ \t]+(?:-\w{{1,4}}[ \t]{{1,4}}){{0,4}}['\"]?[\w$#]{{1,60}}/{_SQLPLUS}(?=[@\s'\"])"),
    (("\n-p", "user"), rf"user(?:add|mod)\b{_OPTIONS}[ \t]-p[ \t]+{_WORD}"),
    (("kinit",), rf"kinit[ \t]{_OPTIONS}<<<[ \t]*{_WORD}"),
    (("\nsudo\n",), rf"sudo[ \t]+-\w{{0,6}}s{_OPTIONS}<<<[ \t]*{_WORD}"),
    (("\nexpect", "passw"), r"passw[^\n]{0,40}\bsend[ \t]+(?:--[ \t]+)?\"(?P<d>[^\"\n\\]{3,200})(?:\\[rn])?\""),
    (("vault", "login"), rf"vault[ \t]+login[ \t]+(?:-[\w=/-]{{1,40}}[ \t]{{1,4}}){{0,4}}{_WORD}"),
    (("\nset\n",), rf"\\set[ \t]+\w{{0,40}}(?:pass|pwd|secret|token|key)\w{{0,40}}[ \t]+{_WORD}"),
    (("\n-p", "psexec"), rf"psexec{_OPTIONS}[ \t]-p[ \t]+{_WORD}"),
    (("operator", "unseal"), rf"operator[ \t]+unseal[ \t]+(?:-[\w=-]{{1,40}}[ \t]{{1,4}}){{0,4}}{_WORD}"),
    (("\n-p", "upload"), rf"\bupload\b{_OPTIONS}[ \t]-p[ \t]+{_WORD}"),
    (("--passphrase",), rf"--passphrase[ \t=]+{_WORD}"),
    (("\nset\n", "secret"), rf"secret set[ \t]{_OPTIONS}(?:--body|-b)[ \t=]+{_WORD}"),
    (("\nkv\n", "\nput\n"), rf"kv put[ \t]{_OPTIONS}[ \t]\w{{1,40}}={_WORD}"),
    (("echo", "--password-stdin"), _PIPED),
    (("echo", "chpasswd"), _PIPED),
    (("echo", "\nsudo\n"), _PIPED),
    (("requirepass",), rf"requirepass[\"']?,?[ \t]+{_WORD}"),
    (("masterauth",), rf"masterauth[ \t]+{_WORD}"),
    (("bindpw",), rf"bindpw[ \t]+{_WORD}"),
    (("rootpw",), rf"rootpw[ \t]+{_WORD}"),
    (("machine", "passw"), rf"machine[ \t]+{_NETRC}"),
    (("login", "passw"), rf"login[ \t]+{_NETRC}"),
)  # fmt: skip
_COMPILED = tuple(
    (hints, re.compile(pattern), re.search(r"-[A-Z]\[", pattern) is not None) for hints, pattern in _COMMANDS
)
"Hints, expression, and whether capital letters count."
_HINTS = frozenset(hint for hints, _, _ in _COMPILED for hint in hints)
_BY_HINT = {
    # The last one of several is the rarest: "-p" and "echo" stand in many texts.
    hint: [number for number, (hints, _, _) in enumerate(_COMPILED) if hints[-1] == hint]
    for hint in (hints[-1] for hints, _, _ in _COMPILED)
}
_CURL = re.compile(
    # It begins with the mark itself: what stands before it is looked at behind it, for the search to be quick.
    rf"-(?<=[ \t\"']-)(?:u[ \t=]*|(?:a|-(?:proxy-)?user|-auth)[ \t=]+|-?u(?:ser)?[\"'],\s{{0,20}}){_WORD}"
)


_HERE_STRING = re.compile(rf"(?:secret|passw\w{{0,20}}|token)[ \t]*<<<[ \t]*{_WORD}", re.IGNORECASE)
_USER = ("\n-u", "\n-a", "--auth", "--user", "--proxy-user")


def commands(source: SearchedText) -> Iterator[Found]:
    """Yields passwords on command lines of well-known programs."""
    text = source.text
    found = source.found(_HINTS)
    for number in sorted({number for hint in found for number in _BY_HINT.get(hint, ())}):
        hints, pattern, capitals = _COMPILED[number]
        if found.issuperset(hints):
            # A search in small letters finds its first word several times as fast as one that ignores their size.
            for match in pattern.finditer(text if capitals else source.lower):
                yield from _command_value(text, match)
    if "<<<" in text:
        for match in _HERE_STRING.finditer(text):
            yield from _command_value(text, match)
    if any(map(source.has, _USER)) and (source.has("curl") or source.has("http")):
        for match in _CURL.finditer(text):
            start, end = match.span(match.lastgroup or 0)
            user, colon, value = text[start:end].partition(":")
            if (
                colon
                and value != user
                and value[:1] not in ("/", "\\")
                and not user.isdigit()
                and is_secretive(value, Evidence.PASSWORD)
            ):
                yield "password on a command line", start + len(user) + 1, end


def _command_value(text: str, match: re.Match[str]) -> Iterator[Found]:
    start, end = match.span(match.lastgroup or 0)
    value = text[start:end]
    if "chpasswd" in match[0] and ":" in value:
        start += value.index(":") + 1
        value = text[start:end]
    if is_secretive(value, Evidence.PASSWORD) and not value.startswith("-"):
        yield "password on a command line", start, end
