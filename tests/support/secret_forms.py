"""Forms in which secrets stand in languages and file formats, filled with random values, and what only looks like one.

secret_forms.json and secret_look_alikes.json hold [file name, text]. In a form {v} is the secret, {u} one that fits in
a URL, {b64} and {auth} it in base64, {wrapped} a token in base64, {wrappedjson} JSON with it in base64, {pem} key
material.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engine.data.languages import language_by_name

LETTERS_AND_DIGITS = string.ascii_letters + string.digits
_WORDS = ("Summer", "Dragon", "Falcon", "Winter", "Monkey", "orange", "Sunset", "rocket", "tiger", "Coffee", "Berlin")
KINDS = ("human", "letters and digits", "hexadecimal", "base64", "marks", "small letters")


@dataclass(frozen=True)
class Planted:
    """A text with a secret in it."""

    form: str
    kind: str
    "Of value."
    text: str
    language: str
    secret: str


def look_alikes() -> list[tuple[str, str]]:
    """Text and language of what is no secret."""
    return [(text, language_of(name)) for name, text in _stored("secret_look_alikes.json")]


def planted(seed: int) -> Iterator[Planted]:
    """Every form with a value of every kind."""
    for number, (name, form) in enumerate(_stored("secret_forms.json")):
        for kind in KINDS:
            text, secret = _fill(form, kind, random.Random(f"{seed} {number} {kind}"))
            yield Planted(form, kind, text, language_of(name), secret)


def language_of(name: str) -> str:
    """The language of a file; that of commits is searched like YAML."""
    return "YAML" if name.endswith(".diff") else language_by_name(PurePosixPath(name).name) or "Text"


def _stored(name: str) -> list[tuple[str, str]]:
    rows = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return [(str(file), str(text)) for file, text in rows]


def _fill(form: str, kind: str, rng: random.Random) -> tuple[str, str]:
    value = _value(kind, rng)
    in_url = "".join(c if c.isalnum() or c in "!*_-.~" else "x" for c in value)
    encoded = {
        "{b64}": f"x:{value}",
        "{auth}": f"bob:{value}",
        "{wrappedjson}": json.dumps({"password": value}),
        "{wrapped}": f"ghp_{_draw(rng, LETTERS_AND_DIGITS, 36)}",
        "{b64long}": f"-----BEGIN RSA PRIVATE KEY-----\n{_material(rng)}\n-----END RSA PRIVATE KEY-----\n",
    }
    fields = {"{v}": value, "{u}": in_url, "{pem}": _material(rng).replace("\n", "")}
    fields |= {field: base64.b64encode(text.encode()).decode() for field, text in encoded.items()}
    secret = next(content for field, content in fields.items() if field in form)
    for field, content in fields.items():
        form = form.replace(field, content)
    return form, secret


def _value(kind: str, rng: random.Random) -> str:
    match kind:
        case "human":
            word = rng.choice(_WORDS) + rng.choice(["", _draw(rng, string.digits, 2)])
            return word + rng.choice("!@#*_-%") + _draw(rng, LETTERS_AND_DIGITS, rng.choice([3, 5, 8])) + "7"
        case "letters and digits":
            return _draw(rng, LETTERS_AND_DIGITS, rng.choice([16, 20, 24, 32, 40]))
        case "hexadecimal":
            return _draw(rng, "0123456789abcdef", rng.choice([32, 40, 64]))
        case "base64":
            return base64.b64encode(rng.randbytes(30)).decode()
        case "marks":
            parts = (_draw(rng, LETTERS_AND_DIGITS, count) for count in (6, 7, 2))
            return rng.choice("!*_-.%@+").join(parts) + rng.choice("~^!")
    return _draw(rng, string.ascii_lowercase + string.digits, 20)


def _draw(rng: random.Random, alphabet: str, count: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(count))


def _material(rng: random.Random) -> str:
    return base64.encodebytes(rng.randbytes(200)).decode().strip()
