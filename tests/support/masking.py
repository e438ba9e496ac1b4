"""A text without the secrets that are found in it, and blocks as keys have."""

from __future__ import annotations

import base64
import random
import textwrap

from engine.data.documents import Edit, edited
from engine.data.secrets import PLACEHOLDER, find_secrets


def masked(text: str, language: str) -> str:
    secrets = find_secrets(text, language)
    return edited(text, [Edit(secret.start, secret.end, PLACEHOLDER) for secret in secrets])


def pem(what: str, lines: int = 5) -> str:
    body = base64.b64encode(random.Random(what).randbytes(48 * lines + 20)).decode()
    rows = "\n".join(textwrap.wrap(body, 64))
    return f"-----BEGIN {what}-----\n{rows}\n-----END {what}-----\n"
