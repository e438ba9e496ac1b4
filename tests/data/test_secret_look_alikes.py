"""Values that stand where secrets stand and are other things by what they are, and secrets of nearly the same form."""

from __future__ import annotations

import base64
import random

import pytest

from engine.data.secrets import find_secrets


def found(text: str, language: str) -> list[str]:
    return [text[secret.start : secret.end] for secret in find_secrets(text, language)]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


CLASS = "class PKCS11Vault2:\n    pass\n\n\ndef open(token: Token) -> 'PKCS11Vault2':\n    return PKCS11Vault2(token)\n"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("Rust", "use vault_jwt::Es256Verifier9;\n"),
        ("Rust", "entry.add(Attribute::BadPassword, Value::from_utf8x9(pw));\n"),
        ("Python", CLASS),
        ("Python", "def open(token: Token) -> 'SSH2Vault9k':\n    ...\n"),
        ("HTML", '<app-login [credentials$]="deviceCredentials$"></app-login>'),
        ("Shell", '# openssl req -new -key ca.key -subj "/C=NL/O=Acme 4/CN=10.1.2.3"\n'),
        ("Ruby", "key = Buffer.from(:string, 'ecdsa-sha2-nistp384', :string, 'nistp384')\n"),
        (
            "Rust",
            'let key = ("authorization", "SharedKey acct7:{}");'.format(encoded("0123456789abcdefghijklmnopqrstuv")),
        ),
        ("Python", 'assert session_token.startswith("Q7xZr93kLmTzW")\n'),
        ("Text", "gpg:                using RSA key 9C1E34B7A2D05F6683E1CC47B9A0D27F51E8036A\n"),
        ("Python", 'client_request_token = "4C1F9A6C-85B7-B7E4-38F2A3BEB13C"\n'),
        ("Python", 'client.post(url, json={"CreationToken": "7391qwhzdkfj2x"})\n'),
        ("HCL", 'resource "aws_efs_file_system" "a" {\n  creation_token = "k9Xq2LmZ7wT4vB8n"\n}\n'),
        ("Python", 'client.create_file_system(\n    CreationToken="k9Xq2LmZ7wT4vB8n")\n'),
        ("Python", "class Base64Password:\n    pass\n\n\nPASSWORD_TYPE = 'Base64Password'\n"),
        ("Rust", 'struct Sha256Password { a: u8 }\nlet password = "Sha256Password";\n'),
        ("Objective-C", '[token appendFormat:@"%02.2hhX", data[i]];'),
        ("Shell", 'config_set "$CREDENTIALS" \'.password="$PASSWORD"\'\n'),
        ("PHP", "$this->auth_key = \\Yii::$app->security->generateRandomString();\n"),
        ("Markdown", '[debug] QUERY OK source="user_tokens" db=2.4ms idle=1340.8ms\n'),
        ("Python", "url = 'http://bob:my%20pass@proxy.local:80'\n"),
        ("Python", "url = 'http://bob:k9%20z@proxy.local:80'\n"),
        ("PHP", "['password' => 'notTheRightPassword!']\n"),
        ("TypeScript", "login({password: 'te$t'})\n"),
        ("Go", 'VerifyHeader("Authorization", "Basic {}")\n'.format(encoded("shop-client-id:shop-client-secret"))),
        ("Rust", '(AUTHORIZATION, "Basic {}")\n'.format(encoded("aaa%2F%3B%26:bbb%2F%3B%26"))),
        ("JavaScript", 'const key = "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw...";\n'),
        ("YAML", "token: {}\n".format(encoded("There are 12 moons that turn round this one."))),
    ],
)
def test_other_things_stay(language: str, text: str) -> None:
    assert found(text, language) == []


@pytest.mark.parametrize(
    ("language", "text", "secret"),
    [
        ("YAML", "password: :k9Xq2LmZ7w\n", "k9Xq2LmZ7w"),
        ("Python", "def open(token: Token = 'k9Xq2LmZ7wT4vB8n') -> 'Vault':\n    ...\n", "k9Xq2LmZ7wT4vB8n"),
        ("Python", "class Vault:\n    token = 'k9Xq2LmZ7wT4vB8n'\n", "k9Xq2LmZ7wT4vB8n"),
        ("TypeScript", "const password = 'blueTiger42$';\n", "blueTiger42$"),
        ("PHP", "$token = $store->get('k9Xq2LmZ7wT4vB8n');\n", "k9Xq2LmZ7wT4vB8n"),
        ("Python", 'assert api_token.startswith("k9Xq2LmZ7wT4vB8nR3cY6sD1")\n', "k9Xq2LmZ7wT4vB8nR3cY6sD1"),
        ("C#", 'var conn = "UID=sa;PWD=k9Xq2LmZ;";\n', "k9Xq2LmZ"),
        ("Python", "url = 'http://bob:k9%20zQ7%21x@proxy.local:80'\n", "k9%20zQ7%21x"),
        ("YAML", "account_key: acct7:b2xkIHNoaXBzIGFyZSBzbG93IGFuZCBsb25nLCBibwo=\n", ""),
        ("JavaScript", "const password = 'pa$$!@#%^&*(w';\n", "pa$$!@#%^&*(w"),
        ("Go", 'VerifyHeader("Authorization", "Basic {}")\n'.format(encoded("shop-client-id:shop-k9Xq2LmZ")), ""),
        (
            "JavaScript",
            'const k = "-----BEGIN PRIVATE KEY-----\\n%s...";\n' % ("k9Xq2LmZ7wT4vB8nR3cY6sD1fG5hJ0" * 12),
            "",
        ),
        ("Text", "using RSA key: 9C1E34B7A2D05F6683E1CC47B9A0D27F51E8036A\n", ""),
        ("Python", "class Sunshine2019:\n    pass\n\n\nDB_PASSWORD = 'Sunshine2019'\n", "Sunshine2019"),
        ("Go", 'type Harbour83Pass struct{}\n\nvar password = "Harbour83Pass"\n', "Harbour83Pass"),
        ("Java", 'void Winter2024Login() {}\nString dbPassword = "Winter2024Login";\n', "Winter2024Login"),
        ("Rust", 'fn zQ8kLp3vXw9T() {}\nlet api_key = "zQ8kLp3vXw9T";\n', "zQ8kLp3vXw9T"),
        ("Java", '// a new SSH2Vault9k(old) login\nclass A { String token = "SSH2Vault9k"; }\n', "SSH2Vault9k"),
        ("Text", "token: SSH2Vault9k\nthe second class SSH2Vault9k\n", "SSH2Vault9k"),
        ("Erlang", 'password(prod) -> "Kx82!mQz7Lp".\n', "Kx82!mQz7Lp"),
        ("Java", 'setPassword((x) -> "Kx82!mQz7Lp");\n', "Kx82!mQz7Lp"),
        ("INI", "password::Qx9vLmZ2kT\n", "Qx9vLmZ2kT"),
        ("AsciiDoc", "Password:: Sommer2023Regen\n", "Sommer2023Regen"),
        ("YAML", "account_creation_token: k9Xq2LmZ7wT4vB8n\n", "k9Xq2LmZ7wT4vB8n"),
        ("YAML", "creation-token: k9Xq2LmZ7wT4vB8n\n", "k9Xq2LmZ7wT4vB8n"),
        ("JavaScript", 'const creationToken = "k9Xq2LmZ7wT4vB8nR3cY6sD1"; // see prefs\n', "k9Xq2LmZ7wT4vB8nR3cY6sD1"),
        ("Python", "password = 'x7q-k9z-m2p-w4t'\n", "x7q-k9z-m2p-w4t"),
        ("Python", "password = '9f3K9f3K9f3K9f3K9f3K9f3K'\n", "9f3K9f3K9f3K9f3K9f3K9f3K"),
        ("YAML", "url: amqp://svc:harbourPwd@mq.prod.internal\n", "harbourPwd"),
        ("YAML", "url: http://svc:my%20pass1X@db.prod.internal\n", "my%20pass1X"),
        ("Python", "password = 'nonsecretKx82mQ'\n", "nonsecretKx82mQ"),
        (
            "Python",
            'headers = {{"Authorization": "Basic {}"}}\n'.format(encoded("bob:bob-secret")),
            encoded("bob:bob-secret"),
        ),
    ],
)
def test_secrets_of_nearly_the_same_form(language: str, text: str, secret: str) -> None:
    assert any(secret in value for value in found(text, language))


@pytest.mark.parametrize("defines", ["class {}:", "struct {} {{", "enum {} {{", "interface {} {{", "new {}()"])
def test_passwords_of_two_words_and_a_number_are_no_types(defines: str) -> None:
    rng = random.Random(defines)
    words = ("Tiger", "Harbour", "Winter", "Monkey", "Orange", "Rocket")
    for _ in range(40):
        value = f"{rng.choice(words)}{rng.randrange(10, 9999)}{rng.choice(('Pass', 'Login', 'Access', 'Blue'))}"
        assert value in found(f"{defines.format(value)}\n\npassword = '{value}'\n", "Java"), value


def test_a_token_whose_start_has_other_letters_than_its_rule() -> None:
    """Gitleaks writes the starts of some forms in small letters, which the tokens themselves do not have."""
    token = "EAAM" + "9GOnCB9kBO2zXpAtRBmCrsPPjdA3KeBl4tqsEpcYd09cpjm9MZCBIklZC4" * 3
    assert token in found(f'{{"eaam": 1, "token": "{token}"}}', "JSON")
