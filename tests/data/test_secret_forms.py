"""Secrets in the forms that languages and formats give them are masked, from their start to their end."""

from __future__ import annotations

import base64
import random
import re
from collections import Counter

import pytest
from support.masking import masked, pem
from support.secret_forms import Planted, planted

from engine.data.secrets import PLACEHOLDER, find_secrets, masked_name


def leaks(case: Planted) -> bool:
    left = masked(case.text, case.language)
    return any(case.secret[place : place + 8] in left for place in range(max(1, len(case.secret) - 7)))


@pytest.mark.parametrize("seed", range(2))
def test_recall_over_forms_of_languages_and_formats(seed: int) -> None:
    cases = list(planted(seed))
    missed = [case for case in cases if leaks(case)]
    assert len(cases) > 3300
    assert len(missed) < 0.03 * len(cases), [(case.form, case.kind) for case in missed]
    # No form is missed whatever its value is.
    assert max(Counter(case.form for case in missed).values()) <= 4


@pytest.mark.parametrize(
    "between", ['password = "k9Xq2LmZ7w"', "DB_PASSWORD=k9Xq2LmZ7wT4vB8nR3cY6sD1fG5hJ0kL", pem("PRIVATE KEY")]
)
def test_what_stands_between_the_marks_of_certificates_is_searched(between: str) -> None:
    code = f'BEGIN = "-----BEGIN CERTIFICATE-----"\n{between}\nEND = "-----END CERTIFICATE-----"\n'
    shortened = f"-----BEGIN CERTIFICATE-----\nMIIC\n{between}\n{pem('CERTIFICATE')}"
    secret = re.findall("[A-Za-z0-9+/]{10,}", between)[-1]
    for text in (code, shortened):
        assert secret not in masked(text, "Shell")


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("C++", 'std::string app::settings::password = "{}";\n'),
        ("Ruby", "App::Mail::Settings.password = '{}'\n"),
        ("JSON", '{{"Services:Auth:Google:ClientSecret": "{}"}}\n'),
        ("Shell", "Services:Auth:Google:ClientSecret={}\n"),
    ],
)
def test_names_within_namespaces_and_sections_tell(language: str, code: str) -> None:
    assert "k9Xq2LmZ7w" not in masked(code.format("k9Xq2LmZ7w"), language)


@pytest.mark.parametrize(
    "text",
    [
        "https://host.example/v1/Acme2/Widgets7/{}/contents/Main2/index",
        "path/to/Some1Thing/Other2Thing/{}",
        "{}/wJalrXUtnF3MI7K7DENGbPxRfiCY2k9",
        "signed in as {}... done",
    ],
)
@pytest.mark.parametrize("token", ["ghp_k9Xq2LmZ7wT4vB8nR3cY6sD1fG5hJ0kLpQ2a", "AKIAQ7MZ3XK5WV2NB6TD"])
def test_tokens_in_paths_and_before_dots_are_whole(text: str, token: str) -> None:
    assert token not in masked(text.format(token), "Text")


def test_a_telegram_token_is_masked_in_its_address() -> None:
    token = "8412067395:AAk9Xq2LmZ7wT4vB8nR3cY6sD1fG5hJ0kLp"
    assert "k9Xq2LmZ7w" not in masked(f"curl https://api.telegram.org/bot{token}/getMe\n", "Shell")


@pytest.mark.parametrize("call", ["os.getenv", "config.get", "options.set"])
def test_a_default_on_a_line_of_its_own_is_a_password(call: str) -> None:
    code = '{}(\n    "DB_PASSWORD",\n    "letme1n99",\n)\n'
    assert "letme1n99" not in masked(code.format(call), "Python")
    # Of other calls and lists it may be the next text.
    assert "letme1n99" in masked(code.format("texts = "), "Python")


@pytest.mark.parametrize(
    "text",
    [
        "API_KEY=30499A90EBB4108E\n",
        'api_key = "30499A90EBB4108E"\n',
        'secret_key: "0123ABCD45EF67890A1B2C3D4E5F60718293A4B5"\n',
        'signing_key = "8A3F19C0D27B44E1"\n',
    ],
)
def test_upper_case_hexadecimal_is_a_secret_where_a_name_says_so(text: str) -> None:
    assert len(find_secrets(text, "Shell" if text.isupper() else "Python")) == 1


@pytest.mark.parametrize("size", [16, 30, 32, 48])
def test_base64_in_which_letters_happen_to_look_like_words(size: int) -> None:
    rng = random.Random(size)
    for _ in range(500):
        value = base64.b64encode(rng.randbytes(size)).decode()
        if "/" in value.strip("/"):
            assert masked(f'api_key = "{value}"\n', "Python") == f'api_key = "{PLACEHOLDER}"\n', value


def test_a_secret_is_masked_wherever_it_stands() -> None:
    text = 'password = "k9Xq2LmZ7w"\nlog("k9Xq2LmZ7w was used")\n'
    assert "k9Xq2LmZ7w" not in masked(text, "Python")


@pytest.mark.parametrize(
    ("language", "form"),
    [
        ("Shell", "API_TOKEN={}\n"),
        ("YAML", "token: {}\n"),
        ("YAML", "- name: API_TOKEN\n  value: {}\n"),
        ("Shell", "run --token {} --x\n"),
    ],
)
def test_long_values_are_masked_to_their_end(language: str, form: str) -> None:
    value = base64.b64encode(random.Random(3).randbytes(900)).decode()
    assert masked(form.format(value), language) == form.format(PLACEHOLDER)


def test_a_key_behind_code_that_names_its_mark_is_masked_alone() -> None:
    code = 'assert "-----BEGIN PRIVATE KEY-----" in text1\nvalue2 = compute(text1, 16)\n'
    assert masked(code + pem("PRIVATE KEY"), "Python").startswith(code + "-----BEGIN PRIVATE KEY-----" + PLACEHOLDER)


def test_tokens_in_paths() -> None:
    token = "ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dE3fG6"
    assert masked_name(f"src/{token}.py") == f"src/{PLACEHOLDER}.py"
    assert masked_name("src/models/qwen2_vl_7b.py") == "src/models/qwen2_vl_7b.py"
