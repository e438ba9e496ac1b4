"""Secrets that stand where a rule for something else looks: each form is filled with values drawn at random."""

from __future__ import annotations

import base64
import json
import random
import string

import pytest

from engine.data.documents import Edit, edited
from engine.data.secrets import PLACEHOLDER, find_secrets

MIXED = string.ascii_letters + string.digits
MARKS = "!#%^&*-_~+=,.;:/?|"


def masked(text: str, language: str) -> str:
    return edited(text, [Edit(found.start, found.end, PLACEHOLDER) for found in find_secrets(text, language)])


def drawn(rng: random.Random, kind: str) -> str:
    if kind == "base64":
        return base64.b64encode(rng.randbytes(32)).decode()
    letters, size = {"hex": (string.hexdigits[:16], 64), "mixed": (MIXED, 32), "password": (MIXED, 12)}[kind]
    while True:
        value = "".join(rng.choices(letters, k=size))
        if sum(c.isdigit() for c in value) > 1:
            return value


@pytest.mark.parametrize(
    ("language", "form", "kind"),
    [
        # What chooses a value compares another name.
        ("TypeScript", "const password = env === 'prod' ? '{}' : 'dev';", "password"),
        ("TypeScript", "const apiKey = stage == \"prod\" ? '{}' : '';", "hex"),
        ("PHP", "$password = $env == 'prod' ? '{}' : 'x';", "password"),
        ("Terraform", '  password = var.env == "prod" ? "{}" : "dev"', "password"),
        ("YAML", "password: env == 'prod' ? '{}' : 'x'", "password"),
        # A call gives several results, of which the first is named.
        ("Go", 'key, _ := base64.StdEncoding.DecodeString("{}")', "base64"),
        ("Go", 'privateKey, err := crypto.HexToECDSA("{}")', "hex"),
        ("Go", 'apiKey, ok := lookup("{}")', "mixed"),
        ("Python", 'password, salt = derive("{}"), 3', "password"),
        # A number behind it says for how long it is kept.
        ("PHP", 'setcookie("auth_token", "{}", 3600);', "hex"),
        ("Python", 'cache.set("db_password", "{}", 60)', "hex"),
        # Whoever may see a variable.
        ("Java", 'public class Signer {\n  String key = "{}";', "mixed"),
        ("C#", 'public static class Signer {\n  const string key = "{}";', "mixed"),
        ("Java", 'public Cipher make() {\n    byte[] key = "{}".getBytes();', "mixed"),
        ("Java", 'public static final String KEY = "{}";', "mixed"),
        # Words of a derivation that say other things.
        ("Python", 'SALT = "{}"\n\ndef sign(x):\n    logger.info("sign")\n    return mac(SALT, x)', "hex"),
        ("Python", 'SALT = "{}"  # as expected by the server', "mixed"),
        ("XML", "<clientToken>{}</clientToken>", "hex"),
    ],
)
def test_values_in_statements(language: str, form: str, kind: str) -> None:
    rng = random.Random(form)
    values = [drawn(rng, kind) for _ in range(40)]
    results = [masked(form.replace("{}", value), language) for value in values]
    assert set(results) <= {form.replace("{}", one) for one in (PLACEHOLDER, *values)}
    # A few look like words by chance.
    assert results.count(form.replace("{}", PLACEHOLDER)) >= 36


def test_passwords_of_a_word_a_name_and_a_number() -> None:
    rng = random.Random(5)
    for word in ("Runner", "Coffee", "Winter", "window", "Paris", "Monkey"):
        for name in ("Max", "Min", "To"):
            value = f"{word}{name}{rng.randrange(10, 2030)}"
            assert value not in masked(f'password = "{value}"', "Python")


def test_brackets_within_drawn_passwords() -> None:
    rng = random.Random(8)
    for brackets in (")]", "])"):
        left = 0
        for _ in range(200):
            start, end = ("".join(rng.choices(MIXED + MARKS, k=29)) for _ in range(2))
            value = start + brackets + end
            left += value in masked(f"define('AUTH_KEY', '{value}');", "PHP")
        assert left < 40  # of values without brackets about as many look like something else


def part(claims: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


@pytest.mark.parametrize("claims", [{"sub": "u1", "exp": 1711111111}, {"sub": "u1", "scope": "push"}])
def test_tokens_that_a_certificate_signs_and_that_open_something(claims: dict[str, object]) -> None:
    signature = base64.urlsafe_b64encode(random.Random(2).randbytes(96)).decode()
    token = ".".join([part({"alg": "RS256", "x5c": ["MIICZTCC"]}), part(claims), signature])
    assert masked(f"token: '{token}'", "YAML") == f"token: '{PLACEHOLDER}'"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("Python", '{"signed_curve25519:AAAAHg": {\n    "key": "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs"'),
        ("Python", 'names = {"password": "XmlStringMaxLen256", "token": "IntegerMin0Max1000"}'),
        ("XML", "<clientToken>7c0e4b19-d2a8-4f63-b1e9-4c07a6d3f8e2</clientToken>"),
        ("Python", 'salt = "7c0e4b19d2a8"\nexpected = "9f8c1e0b7d6a5f4e"\n'),
        ("Python", 'salt = "7c0e4b19d2a8"\ninfo = b"9f8c1e0b7d6a5f4e"\n'),
    ],
)
def test_what_the_same_rules_leave(language: str, text: str) -> None:
    assert masked(text, language) == text


@pytest.mark.parametrize("size", [310, 900, 5000, 9000, 40_000])
@pytest.mark.parametrize(
    ("language", "form"),
    [
        ("Shell", "API_TOKEN={}\n"),
        ("Shell", "run --token {} --x\n"),
        ("YAML", "- name: API_TOKEN\n  value: {}\n"),
        ("XML", "<password>{}</password>"),
        ("Text", "https://example.org/?access_token={}&page=1"),
        ("HTTP", "Authorization: Bearer {}\n"),
    ],
)
def test_nothing_is_left_of_a_long_value(language: str, form: str, size: int) -> None:
    value = random.Random(size).randbytes(size // 2).hex()
    assert masked(form.replace("{}", value), language) == form.replace("{}", PLACEHOLDER)


@pytest.mark.parametrize("language", ["Python", "YAML"])
@pytest.mark.parametrize(
    "part", ["password:Ab3dE6", "token=Ab3dE6gH9jK2mN5p", "<password>Ab3dE6gH9jK2", "token=token="]
)
def test_names_within_long_values_take_time_in_line_with_their_number(part: str, language: str) -> None:
    # No time is asserted: what is quadratic is not searched to its end here.
    find_secrets(part * (1_000_000 // len(part)), language)
