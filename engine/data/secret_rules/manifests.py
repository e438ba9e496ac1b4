"""Finds secrets of Kubernetes, keys of a kubeconfig, registries' logins, and password files' entries."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.encoded import decoded_ascii
from engine.data.secret_rules.logins import is_login
from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secret_rules.values import Evidence, is_placeholder, is_secretive

Found = tuple[str, int, int]
_KIND_SECRET = re.compile(r"^[ \t]{0,20}[\"']?kind[\"']?[ \t]*:[ \t]*[\"']?secret[\"']?,?[ \t]*$", re.MULTILINE)
_DATA = re.compile(r"^(?P<indent>[ \t]{0,20})(?:string)?data:[ \t]*$", re.MULTILINE)
_ENTRY = re.compile(r"(?P<indent>[ \t]*)[\"']?(?P<key>[\w.-]{1,120})[\"']?:[ \t]*(?P<value>[^\n]*)\n?")
_LEAST_KEY = 100
"Characters of a key in base64; shorter ones are its marks alone."
_BETWEEN = re.compile(r"^[ \t]{0,20}(?:---|```|~~~)[^\n]*$", re.MULTILINE)
"Parts a document from the next, or from the text around it."
_BLOCK_LINE = re.compile(r"(?P<indent>[ \t]+)[^\n]+\n?")
_OTHER_ENTRY = re.compile(r"(?:crt|cert|ca|pub|namespace|url|host|user|username)$")
"Keys whose values are no secrets: certificates, places, names."
_AUTH = re.compile(
    r"\\{0,8}[\"'](?:auth|identitytoken|registrytoken|_auth)\\{0,8}[\"'][ \t]*:[ \t]*\\{0,8}"
    r"[\"'](?P<value>[\w+/=.-]{8,4000})\\{0,8}[\"']"
    r"|_auth[ \t]*=[ \t]*[\"']?(?P<other>[\w+/=]{8,400})"
)
_KEY_DATA = re.compile(
    r"(?:client-key-data|tls\.key|ssh-privatekey|id_rsa|\.dockerconfigjson|\.dockercfg)[\"']?[ \t]*:[ \t]*[\"']?"
    r"(?P<value>[\w+/=]{16,40000})(?![\w+/=(])"
)
_OAUTH = re.compile(
    r"[\"'](?:github|gitlab|bitbucket)-(?:oauth|token)[\"'][ \t]*:[ \t]*\{\s{0,40}[\"'][\w.-]{1,100}[\"'][ \t]*:[ \t]*"
    r"[\"'](?P<value>[^\"'\n]{8,200})[\"']"
)
"A host's token in Composer's auth.json."
_PGPASS = re.compile(
    r"^[\w.*-]{1,200}:(?:\d{2,5}|\*):[\w.*-]{1,100}:[\w.*-]{1,100}:(?P<value>[^\s:]{4,200})$", re.MULTILINE
)


def manifests(source: SearchedText) -> Iterator[Found]:
    """Yields secrets of Kubernetes, keys of a kubeconfig, registries' logins, and password files' entries."""
    text, lower = source.text, source.lower
    if source.has("secret") and source.has("data") and source.has("kind") and _KIND_SECRET.search(lower):
        yield from _kubernetes(text, lower)
    if any(map(source.has, ("\nauth\n", "\n_auth\n", "_auth=", "identitytoken", "registrytoken"))):
        for match in _AUTH.finditer(lower):
            group = "value" if match["value"] is not None else "other"
            value = text[slice(*match.span(group))]
            decoded = decoded_ascii(value) or ""
            if is_login(decoded) or (":" not in decoded and is_secretive(value, Evidence.NEAR)):
                yield "registry login", *match.span(group)
    if source.has("-oauth") or source.has("-token"):
        for match in _OAUTH.finditer(lower):
            if is_secretive(text[slice(*match.span("value"))], Evidence.NAMED):
                yield "registry login", *match.span("value")
    if any(map(source.has, ("key-data", "tls.key", "ssh-private", "dockerc", "id_rsa"))):
        for match in _KEY_DATA.finditer(lower):
            value = text[slice(*match.span("value"))]
            if not is_placeholder(value) and (len(value) >= _LEAST_KEY or not value.startswith("LS0tLS1CRUdJTi")):
                yield "key data", *match.span("value")
    for match in _PGPASS.finditer(text) if source.has(":5432:") or source.has(":*:") else ():
        if is_secretive(match["value"], Evidence.PASSWORD):
            yield "password file", *match.span("value")


def _kubernetes(text: str, lower: str) -> Iterator[Found]:
    """Yields every value below data and stringData of the documents whose kind is Secret."""
    begin = 0
    for document in _BETWEEN.split(lower):
        if _KIND_SECRET.search(document):
            for data in _DATA.finditer(document):
                position = data.end() + 1
                while (entry := _ENTRY.match(document, position)) and len(entry["indent"]) > len(data["indent"]):
                    start, end = (begin + place for place in entry.span("value"))
                    value = text[start:end].strip()
                    start += len(text[start:end]) - len(text[start:end].lstrip())
                    position = entry.end()
                    if _OTHER_ENTRY.search(entry["key"]):
                        continue
                    if value[:1] in ("|", ">"):
                        first = position
                        while (line := _BLOCK_LINE.match(document, position)) and len(line["indent"]) > len(
                            entry["indent"]
                        ):
                            position = line.end()
                        if is_kubernetes_value("".join(text[begin + first : begin + position].split())):
                            yield "Kubernetes secret", begin + first, begin + position
                        continue
                    inner = value.strip("\"'")
                    start += len(value) - len(value.lstrip("\"'"))
                    if len(inner) >= 4 and is_kubernetes_value(inner):
                        yield "Kubernetes secret", start, start + len(inner)
        begin += len(document)
        marked = _BETWEEN.match(lower, begin)
        begin = marked.end() if marked else begin


def is_kubernetes_value(value: str) -> bool:
    """Tells whether it is a value, in base64 or not, and no reference, word or number."""
    decoded = decoded_ascii(value)
    if decoded is not None and len(value) >= 8:
        return is_secretive(decoded.strip(), Evidence.PASSWORD)
    return is_secretive(value, Evidence.PASSWORD)
