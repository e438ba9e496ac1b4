"""Finds private keys in PEM's, OpenPGP's and PuTTY's form, in strings and over several lines too."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secret_rules.values import words_share

Found = tuple[str, int, int]
_BEGIN = re.compile(r"-----BEGIN (?P<what>[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----")
_PUBLIC = re.compile(
    r"-----BEGIN (?P<what>(?:[A-Z0-9 ]{0,20} )?(?:CERTIFICATE(?: REQUEST)?|PUBLIC KEY(?: BLOCK)?|SIGNATURE|MESSAGE|CRL"
    r"|PARAMETERS))-----"
)
_KEY_LENGTH = 20_000
_LINES = re.compile(r"[ \t]{0,4}\d{1,4}(?:\\[rn]|\s){1,8}")
"How many lines there are, and the first of them; code that writes such files has a variable there."
_SHORTENED = 300
"Characters of a block that dots tell to be an example."
_HEADER = re.compile(r"\b(?:Version|Comment|Charset|Hash|MessageID): [^\n\\\"']{0,100}")
"What OpenPGP writes before a block's first line."
_LINE_END = re.compile(r"\\{1,8}[nr]|\+(?=[ \t]{0,40}\n)")
"As a string spells it, or where a string goes on in the next line."
_WORD = re.compile(r"[^\s\"'`,;|>#*\\]+")
_FULL_LINE = re.compile(r"[A-Za-z0-9+/]{32,}")
_LAST_LINE = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_CHECKSUM = re.compile(r"=[A-Za-z0-9+/]{4}")
_MATERIAL = re.compile(r"(?=[A-Za-z+/=]{0,80}\d)[A-Za-z0-9+/=]{16,}")
"Names in code have no digit."
_PEM_HEADER = re.compile(r"(?:[\s\"'+]|\\{1,8}[nr]|(?:Proc-Type|DEK-Info|Version|Comment): [^\n\\\"']{0,100})*")
_SEALED = re.compile(r"ENC\[[A-Z0-9_]{3,20},(?:data|[a-z]+):[^\]\n]{0,20000}\]")
"What sops encrypted."


def public_blocks(text: str) -> list[tuple[int, int]]:
    """Returns the places of certificates, public keys and signatures, in order: what looks random there is no secret.

    Nothing but base64 stands between their marks. Code that names both marks may have a password between them, and a
    private key may follow a shortened certificate.
    """
    found: list[tuple[int, int]] = []
    for match in _PUBLIC.finditer(text) if "-----BEGIN " in text else ():
        end = text.find("-----", match.end(), match.end() + _KEY_LENGTH)
        if text.startswith(f"-----END {match['what']}", end) and _is_base64(text[match.end() : end]):
            found.append((match.start(), end))
    if "ENC[" in text:
        found += [match.span() for match in _SEALED.finditer(text)]
        found.sort()
    return found


def _holds_material(text: str, start: int, end: int) -> bool:
    """Tells whether base64 stands there, and not only the names of code that writes a key."""
    return any(words_share(match[0]) < 0.6 for match in _MATERIAL.finditer(text, start, end))


def _is_base64(block: str) -> bool:
    """Tells whether a block is lines of base64; the last one may be short, and OpenPGP's checksum stand behind it."""
    words = _WORD.findall(_LINE_END.sub(" ", _HEADER.sub("", block)))
    if words and _CHECKSUM.fullmatch(words[-1]):
        words.pop()
    return all(_FULL_LINE.fullmatch(word) for word in words[:-1]) and all(map(_LAST_LINE.fullmatch, words[-1:]))


def key_blocks(source: SearchedText) -> Iterator[Found]:
    """Yields private keys in PEM's, OpenPGP's and PuTTY's form, in strings and over several lines too."""
    text = source.text
    if source.has("private") and "PRIVATE KEY" in text:
        for match in _BEGIN.finditer(text):
            start = match.end()
            limit = start + _KEY_LENGTH
            end = text.find(f"-----END {match['what']}", start, limit)
            if end < 0:
                # Cut off, as in a log or a diff: what looks like its material.
                end = start
                while (
                    line := re.compile(r"[\s\"'+\\nr,|>-]{0,40}[A-Za-z0-9+/=]{40,}").match(text, end)
                ) and line.end() < limit:
                    end = line.end()
            start_of_material = _PEM_HEADER.match(text, start, max(start, end)).end()  # type: ignore[union-attr]
            shortened = end - start < _SHORTENED and "..." in text[start : end + 3]
            if (next_block := text.find("-----BEGIN ", start, end)) >= 0:
                end = next_block  # code names the mark, or the block has another one's end
            if _holds_material(text, start_of_material, end) and not shortened:
                yield "private key", start, end
    position = text.find("PuTTY-User-Key-File") if source.has("putty-") else -1
    while position >= 0:
        lines = text.find("Private-Lines:", position, position + 8000)
        if lines >= 0:
            start = lines + len("Private-Lines:")
            end = text.find("Private-MAC", start, start + _KEY_LENGTH)
            if end > start and _LINES.match(text, start):
                yield "private key", start, end
        position = text.find("PuTTY-User-Key-File", position + 1)
