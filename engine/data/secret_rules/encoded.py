"""Finds secrets wrapped in base64, by searching what decodes to text."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator

_ENCODED = re.compile(r"(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{24,}|[A-Za-z0-9_-]{24,})={0,2}")
_FIRST = 24
"Characters that are decoded first: most words of this length are no base64 of text."
_LONGEST = 65_536
_LEAST_KEY = 100
"Characters of a key block; shorter ones are its marks alone."
_KEY_BLOCK, _PRIVATE = "LS0tLS1CRUdJTi", ("UFJJVkFUR", "BSSVZBVE", "QUklWQVRF")
"Base64 of how a key block begins, and of PRIVATE at each of the three places where it may stand."


def encoded(words: list[str], searched: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yields kind and value of each base64 text that holds a secret; `searched` says whether a decoded text does."""
    for word in words:
        for match in _ENCODED.finditer(word):
            value = match[0]
            if value.startswith(_KEY_BLOCK) and any(part in value[:64] for part in _PRIVATE):
                if len(value) >= _LEAST_KEY:
                    yield "private key", value
            elif len(value) <= _LONGEST and decoded_ascii(value[:_FIRST]) is not None:
                decoded = decoded_ascii(value.rstrip("="))
                if decoded is not None and searched(decoded):
                    yield "encoded secret", value


def decoded_ascii(value: str) -> str | None:
    """Decodes base64 of printable ASCII; returns None for anything else."""
    try:
        raw = base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.decode("ascii") if raw and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in raw) else None
