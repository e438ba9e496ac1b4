from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.planted_secrets import BARE_PLACES, FORMATS, PLACES, fill, private_key

from engine.data.collect import collect
from engine.data.documents import Edit, edited, read_document
from engine.data.filters import is_secret_file
from engine.data.safe_files import Folder
from engine.data.secrets import PLACEHOLDER, Secret, find_secrets, hint

SEEDS = range(4)
PRIVATE_KEYS = ("RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY", "PGP PRIVATE KEY BLOCK")
CONTEXTS = ('value = "{}"\n', "x: {}\n", "call('{}', 1)\n", "# see {} there\n", '{{"v":"{}"}}\n', "A={} ./run\n")


def mask(text: str, secrets: list[Secret]) -> str:
    return edited(text, [Edit(secret.start, secret.end, PLACEHOLDER) for secret in secrets])


def leaks(text: str, parts: list[str], language: str = "Python") -> bool:
    masked = mask(text, find_secrets(text, language))
    return any(part in masked for part in parts if len(part) >= 6)


def recall(cases: list[tuple[str, list[str], str]]) -> tuple[float, list[str]]:
    missed = [text for text, parts, language in cases if leaks(text, parts, language)]
    return 1 - len(missed) / len(cases), missed


def planted() -> list[tuple[str, list[str], str]]:
    cases = []
    for seed in SEEDS:
        rng = random.Random(seed)
        for template in FORMATS.values():
            for context in CONTEXTS:
                value, parts = fill(template, rng)
                cases.append((context.format(value), parts, "Python"))
        for template in PLACES.values():
            text, parts = fill(template, rng)
            cases.append((text, parts, "Python"))
        for language, template in BARE_PLACES.items():
            text, parts = fill(template, rng)
            cases.append((text, parts, language))
        for kind in (
            "RSA PRIVATE KEY",
            "PRIVATE KEY",
            "OPENSSH PRIVATE KEY",
            "EC PRIVATE KEY",
            "PGP PRIVATE KEY BLOCK",
        ):
            text, line = private_key(kind, rng)
            cases.append((f'KEY = """\n{text}"""\n', [line], "Python"))
    return cases


def test_recall_on_planted_secrets() -> None:
    assert len(FORMATS) + len(PLACES) + len(BARE_PLACES) + 5 >= 60
    share, missed = recall(planted())
    assert share >= 0.98, missed[:20]


def test_false_positives_on_the_standard_library(stdlib: Path) -> None:
    folder = Folder(str(stdlib))
    found = []
    for file in collect([stdlib], max_file_bytes=1_000_000).files:
        document = read_document(folder, file, 1_000_000)
        if not isinstance(document, str):
            found += [(file.path, document.text[s.start : s.end]) for s in find_secrets(document.text, file.language)]
    # 31 MB of sources; what is found there are made-up passwords of tests.
    assert len(found) <= 5, found


@pytest.mark.parametrize(
    "text",
    [
        'password = "changeme"\n',
        'password = os.environ["DB_PASSWORD"]\n',
        'api_key = "<your api key>"\n',
        'api_key = "YOUR_API_KEY_1"\n',
        'TOKEN = "${GITHUB_TOKEN}"\n',
        'token_type = "access_token"\n',
        'tokenizer = "Qwen2TokenizerFast"\n',
        'PASSWORD_FIELD = "user.password1.hash"\n',
        'secret_path = "/run/secrets/db1"\n',
        'url = "https://user:password@example.com/"\n',
        'url = f"https://{user}:{password}@host1.example.com/"\n',
        "sha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'\n",
        "AWS_KEY = 'AKIAIOSFODNN7EXAMPLE'\n",
        "key = 'sk-00000000000000000000000000000000'\n",
        "integrity sha512-{B86}==\n",
        "def token(self, value: str = 'a1'): ...\n",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert find_secrets(text, "Python") == []


@given(st.text(), st.sampled_from(["Python", "YAML"]))
def test_any_text(text: str, language: str) -> None:
    secrets = find_secrets(text, language)
    assert all(0 <= secret.start < secret.end <= len(text) for secret in secrets)
    assert all(first.end <= second.start for first, second in pairwise(secrets))


def test_positions_hold_after_letters_whose_small_form_is_longer() -> None:
    text = "İİİİ password = 'k9Xq2LmZ7w'\n"
    (secret,) = find_secrets(text, "Python")
    assert text[secret.start : secret.end] == "k9Xq2LmZ7w"
    assert mask(text, [secret]) == f"İİİİ password = '{PLACEHOLDER}'\n"


def test_every_place_of_a_repeated_secret_is_masked() -> None:
    value, parts = fill(FORMATS["GitHub"], random.Random(7))
    assert not leaks(f"a = '{value}'\nb = '{value}'\n# {value}\n", parts)


def test_a_hint_never_shows_much() -> None:
    assert hint("AKIAABCDEFGHIJKLMNOP") == "AKIA…"
    assert hint("k9Xq2Lm") == "k…"
    assert hint("abc") == "…"


@pytest.mark.parametrize("name", [".env", ".env.production", "id_rsa", "server.pem", "a/.netrc", "x/terraform.tfstate"])
def test_files_of_credentials(name: str) -> None:
    assert is_secret_file(PurePosixPath(name))


@pytest.mark.parametrize("name", [".env.example", "env.py", "id_rsa.pub", "secrets.py", "keys.go", "pem.rs"])
def test_files_that_only_sound_like_it(name: str) -> None:
    assert not is_secret_file(PurePosixPath(name))
