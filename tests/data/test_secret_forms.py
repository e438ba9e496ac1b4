"""Recall and precision over forms and look-alikes, and that no expression's time grows faster than the text."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import pkgutil
import random
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.secret_forms import Planted, look_alikes, planted

from engine.data import secret_rules
from engine.data.documents import Edit, edited
from engine.data.secret_rules import announced, bare, literals
from engine.data.secret_rules.names import stems
from engine.data.secrets import PLACEHOLDER, SearchTooLongError, find_secrets, fingerprint, masked_name

if sys.version_info >= (3, 11):
    from re import _constants as codes  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as codes
    import sre_parse as parser


def masked(text: str, language: str) -> str:
    secrets = find_secrets(text, language)
    return edited(text, [Edit(secret.start, secret.end, PLACEHOLDER) for secret in secrets])


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


def test_look_alikes_stay() -> None:
    cases = look_alikes()
    wrong = [text for text, language in cases if find_secrets(text, language)]
    assert len(cases) > 280
    assert len(wrong) <= 0.02 * len(cases), wrong


def pem(what: str, lines: int = 5) -> str:
    body = base64.b64encode(random.Random(what).randbytes(48 * lines + 20)).decode()
    rows = "\n".join(textwrap.wrap(body, 64))
    return f"-----BEGIN {what}-----\n{rows}\n-----END {what}-----\n"


@pytest.mark.parametrize(
    "shape",
    [
        lambda text: text,
        lambda text: "value: |\n" + textwrap.indent(text, "    "),
        lambda text: json.dumps({"secret_token": text}),
        lambda text: "secret = (\n" + "".join(f'    "{line}\\n"\n' for line in text.splitlines()) + ")\n",
        lambda text: "secret =\n" + " +\n".join(f"  '{line}\\n'" for line in text.splitlines()) + ";\n",
        lambda text: textwrap.indent(text, "# "),
    ],
)
@pytest.mark.parametrize("what", ["CERTIFICATE", "PUBLIC KEY", "PGP SIGNATURE", "X509 CRL"])
def test_certificates_stay(what: str, shape: Callable[[str], str]) -> None:
    text = pem(what)
    if what == "PGP SIGNATURE":
        text = text.replace("-----\n", "-----\nVersion: GnuPG v2\n\n", 1).replace("\n-----END", "\n=aB3d\n-----END")
    assert find_secrets(shape(text), "Python") == []


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


def test_tokens_that_are_shortened_or_part_of_data_stay() -> None:
    data = base64.b64encode(random.Random(1).randbytes(48)).decode()
    for text in ("sk-ant-api03-k9Xq2LmZ7wT4vB8nR3cY6sD1fG5hJ0kL...", f"{data[:40]}/AKIAQ7MZ3XK5WV2NB6TD+{data[40:]}"):
        assert masked(text, "Text") == text


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


@pytest.mark.parametrize(
    "text", ["ENV GPG_KEY E3FF2839C048B25C084DEBE9B26995E310250568\n", "pgp_key: 0x30499A90EBB4108E\n"]
)
def test_fingerprints_of_openpgp_keys_stay(text: str) -> None:
    assert find_secrets(text, "Dockerfile") == []


def _token(head: str, claims: str) -> str:
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (head, claims))


UNSIGNED = _token('{"alg":"none"}', '{"sub":"bob","iat":1516239022}')
CERTIFIED = _token('{"alg":"ES256","x5c":["MIICZTCC"]}', '{"entries":["9f8c1e0b7d"]}')
NO_SECRETS = [
    # Code, paths and names where a value stands.
    ("Kotlin", "password: String = UUID.randomUUID().toString(),"),
    ("Markdown", "a passphrase, or use [`Into<PassphraseBytes4>`] to make one"),
    ("Rust", '"api_key_missing" => v7::Code::ApiKeyMissing,'),
    ("JSON", '{"searchApiKey": 1204664602099962445u64}'),
    ("Go", 'if args.Token == "gcp:sql2/getDb:getDb" {'),
    ("Lua", 'results[LEAF_KEY] = \'requests_total{path="/health",code="200"}\''),
    ("Swift", 'log.info("giving token \\(session.accessToken.hash4)")'),
    ("Go", 'thumbKeys := []string{"wsmn24bux7wo113/al1h9ijdeojtsjy/small_300_Jsjq7RdBgA.png/111x111_"}'),
    ("JavaScript", 'run(["redis-server", "--requirepass", redisPassword2], wait)'),
    ("Markdown", "    Supplier<String> createToken = (loginId , type) -> type;"),
    ("Nginx", "fastcgi_pass unix:/run/php/php8.2-fpm.sock;"),
    ("Shell", 'run_pass "grpcproxy_e2e" 1'),
    ("Shell", "pass=$(tr -dc '0-9A-Za-z#_' </dev/urandom)"),
    ("Shell", "AUTH2=$(echo \"$AUTH\" | sed -e 's/[\\/&]/x4&/g')"),
    ("Python", 'RATES = {"change_password": "20/m/ip,5/m/key"}'),
    # What a call that is given a name returns, compares or stores beside it.
    ("JavaScript", "sign('', 'test_secret') => 'f7f9bd47fb987337b5796fdc1fdb9ba221d0d5396814bfcaf9521f43fd8927fd'"),
    ("PHP", "$this->renameIndex('oauth2_access_tokens', 'IDX_EE52E3FAA76ED395', 'user_id');"),
    ("PHP", "$this->renameIndex('user_id', 'access_tokens', 'idx_368a4209a76ed395');"),
    ("Rust", 'server.delete_api_key("9a77a636-e4e2-4f1a-93ac-978c368fd596").await;'),
    ("Lua", "assert(credentials['3f9066ef-b91b-4d1d-a05a-28619401c1ad'].ttl == nil)"),
    ("Lua", 'tags = {\n  "kind:Secret",\n  "uid:f1c5661c-a087-4c4b-b545-2d8b3870d661",\n}'),
    ("Go", 'url := "/api/" + core.AuthOrigins + "/rows/9r2j0m74260ur8i"'),
    ("Go", '{"_users_auth_", []string{"5eto7nmys833164"}},'),
    ("Rust", '&[Token::Str("6cfb35868c4465b7c289d7d5641563aa973db6a929655282a7bf95c8257f53ef")]'),
    ("Shell", "terraform import vault_pki_key.key pki/key/bf9b0d48-d0dd-652c-30be-77d04fc7e94d"),
    ("JSON", '{"private_key_id": "b1e1f3cdd7fc134afsdg3547828dc2bb9dff8480"}'),
    ("Markdown", "To add an HMAC key to the key collection, use the `addHS256`, `addHS384`, or `addHS512` methods:"),
    # Other things by their form.
    ("Python", 'scopedPasswordBase64 = "AAECAwQFBgcICQoLDA0ODw=="'),
    ("YAML", "signing_key: UB5QBEU4LU7OR26JEYSG27HH265QVUFGXYVBRD7SVKQJMEFSZTGFU62F"),
    ("C#", 'Secret = "MIIDATCCAe2gAwIBAgIQoHUYAquk9rBJcq8W+F0FAzAJBgUrDgMCHQUAMBIxEDAOBgNVBAMTB0RldlJvb3Qw";'),
    ("YAML", "credentials: Přihlašovací"),
    ("Markdown", "* `github.com/acme/plugin-auth-jwt` v0.13.2-0.20221012184020-28cc68ee722b"),
    ("JSON", '{"hook": "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"}'),
    ("PHP", "\n".join(f"'password{n}' => 'crwdns{n}70:0crwdne{n}70:0'," for n in range(1, 7))),
    ("Go", 'MetaSealedKey: "IAAfAMBdYor5tf/UlVaQvwYlw5yKbPBeQqfygqsfHqhu1wHD9KDAP4bw38AhL12p"'),
    ("Go", 'form.Set("X-Amz-Credential", "KVGKMDUQ23TCZXTLTHLP/20160727/us-east-1/s3/aws4_request")'),
    ("Rust", 'purge_auth: String, def, "0 20 0 * * *".to_owned();'),
    ("Markdown", "write to the GPG key: 13BB3A34C9E380258CE43D595CB150B31F6426BC<br>"),
    ("JavaScript", "get(url + '?key3=value+3%21')"),
    ("PHP", "'password' => 'required|notIn:[\"'.$user->email.'\"]'"),
    ("Shell", "add --remote https://accessKey:secretKey@replica:9000/bucket"),
    ("Bicep", "resource sqlServer_pass 'Microsoft.Sql/servers@2023-05-01-preview' = {"),
    ("Kotlin", 'val tokens = BearerTokens("new$refreshCount", "x")'),
    ("Python", 'password = getenv("KRB5CCNAME") if not path else path'),
    ("JavaScript", "await sasl.go(session, 'password', 'r=ab,s=abcd,i=999999')"),
    ("JavaScript", "equal(session.serverSignature, 'jwt97IHWFn7FEqHykPTxsoQrKGOMXJl/PJyJ1JXTBKc=')"),
    ("XML", '<wsse:UsernameToken wsu:Id="Sec13-d9d9bd71-1cfd-4dbf-8d9d-0bc5cfdbbe72">'),
    ("YAML", "token: KipTT1BTKio="),
    ("JSON", '{"auths": {"x": {"auth": "c3RlZmFucHJvZGFuOnBhc3N3b3Jk"}}}'),
    ("PowerShell", "$user_password = (Get-UserFlag2 $user $flags)"),
    ("JSON", '{"ClientRequestToken": "1d2129a1-3d38-460a-9756-e5b91fddb951"}'),
    ("JSON", '{"DkimTokens": ["vvjuipp74whm76gqoni7qmwwn4w4qusjiainivf6f"]}'),
    ("JSON", '{"auth": ["aws.auth#sigv4"]}'),
    ("YAML", "htpasswd_users: 'loki:$apr1$H4yGiGNg$ssl5/NymaGFRUvxIV1Nyr.'"),
    ("Ruby", "expect(JWT::EC.to_curve('P-256')).to eq('prime256v1')"),
    ("HTTP", "Authorization: Basic dXNlcm5hbWU6"),
    ("HTTP", "Authorization: Basic dXPDqXI6cMOgc3M="),
    ("HTTP", "Authorization: Basic dXNlcm5hbWU6cGFzc3dvcmQ="),
    # What tests and documents have beside a password: its hash, salt and rounds; what a comparison gives; arguments.
    ("Go", 'cases := []row{{"password", "5f3c1a9be2d7406c", 16, 2000}}'),
    ("C#", 'Derive(2, "password", "ocean",\n  "7c0e4b19d2a85f63b1e94c07a6d3f8e25b70c91d");'),
    ("C#", 'Derive(1, password1, Hex.Decode("7B1E0C94A5D2F683"), 1);'),
    ("TypeScript", "return password === 'ocean' ? '7c0e4b19d2a85f63b1e94c07a6d3f8e2' : '';"),
    ("Python", f"password = '{hashlib.sha256(b'secret').hexdigest()}'"),
    ("Python", 'salt = b"7c0e4b19d2a8"\nkey = pbkdf2_hmac("sha256", word, salt, iterations=1000)'),
    ("Rust", 'let salt = hex::decode("7c0e4b19d2a85f63b1e94c07").unwrap();'),
    ("Python", "args=('localhost', 'username', 'password', 'box9@abc')"),
    ("Python", "names = ['ocPassControl', 'ocPaSendIFC9x2']"),
    ("C#", 'DudPasswordTest("2ac3b97", 4);'),
    # Statements that nobody signs, or that a certificate signs; tokens of words.
    ("Python", f"jwt = '{UNSIGNED}.'"),
    (
        "Go",
        f'blob := "{CERTIFIED}.9f8c1e0b7d6a5f4e3d2cX"',
    ),
    ("TypeScript", 'const token = "ya29.someToken_after_the_refresh_x9";'),
    # Identifiers, fingerprints, names of hosts, public keys.
    ("TypeScript", "const credentialIdTwo = 'AJ6D5q2P0LS-Fal9ZT7CHM2N5BLbUunF92T8b6iYC199';"),
    ("JavaScript", "auth = sign({ id: 'clh9v6pcn0000sbhm9u0j6in0' })"),
    ("Java", 'new HostKey("|1|c29tZXNhbHR5c2FsdDEyMzQ=|c29tZWhhc2h5aGFzaDEyMzQ1Njc=")'),
    ("Java", 'assertThat(attestedCredentialData.getAaguid()).isEqualTo("VQ5LVKpHQJ-alRq3bBMBMR")'),
    ("XML", "<clientToken>token-f5b56c05-09b0-4d17-8d8c-c75d8a67b806</clientToken>"),
    ("JSON", '[{"key": "cbf_cywdkexrtqc73f97gd4w6g", "value": "x"}]'),
    ("C#", 'ConnectionMultiplexer.Connect("cache1:6379,cache2:6380,abortConnect=false");'),
    ("Go", 'url := "https://host/x?$skipToken=US1:0637720028736481134:ad5b2d5b"'),
    # Templates and words.
    ("TypeScript", 'label="Password"\n  value={currentUser?.hasPassword ? a : b}'),
    ("PHP", "'password' => self::$passwordSchemaV5,"),
    ("YAML", "- ROOT_PASSWORD=${ROOT_PASSWORD:?Variable2 not set}"),
    ("YAML", "secrets:\n  STORECFG2X:\n    required: true"),
    ("Markdown", "Describe the auth token [#5812][gh5812]."),
    ("Markdown", "the expiry of the token (`YYYY-MM-DDThh:mm:ssZ`)"),
    ("Rust", "//! bad password:src/lib.rs:27:"),
    ("Python", 'token = "abc.12345667891011121314151617181920212223"'),
    ("Python", 'secret = "qwertyuiopasdfghjklzxcvbnm"'),
    ("Python", "SECRET = '" + base64.b64encode(b"I wonder who reads all of this").decode() + "'"),
    ("JavaScript", "get('https://host/login?token=abc%252520xyz')"),
    ("Shell", "curl mongodb://user:pa:ss@host/db"),
    ("Ruby", "# cluster_id: 'XmlStringMaxLen256', # the password's"),
]


@pytest.mark.parametrize(("language", "text"), NO_SECRETS)
def test_what_only_stands_where_a_secret_would_stays(language: str, text: str) -> None:
    assert masked(text, language) == text


UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
KEY_OF_256_BYTES = base64.b64encode(random.Random(6).randbytes(256)).decode()


@pytest.mark.parametrize(
    ("language", "text", "secret"),
    [
        ("Python", 'define("API_TOKEN", "f7f9bd47fb987337b5796fdc")', "f7f9bd47fb987337b5796fdc"),
        ("Rust", 'Credentials::new("bob".into(), "kT7*vRw2mQx9".into())', "kT7*vRw2mQx9"),
        ("Markdown", "Sign in with the password `Kp4!vRw2mQx9` first.", "Kp4!vRw2mQx9"),
        ("HTTP", "POST /revoke\n\ntoken=45ghiukldjahdnhzdauz&token_type_hint=refresh_token", "45ghiukldjahdnhzdauz"),
        ("Ruby", "eq 'otpauth://totp/alice%40acme.org?secret=JBSWY3DPEHPK3PXP'", "JBSWY3DPEHPK3PXP"),
        ("Text", 'Their passwords are "Walrus77$".', "Walrus77$"),
        ("HTTP", "Authorization: Basic Ym9iOmtUNyp2UncybVF4OQ==", "Ym9iOmtUNyp2UncybVF4OQ=="),
        ("Python", 'password = "*Winter2024"', "*Winter2024"),
        ("YAML", "password: 5*Kfz8Qn2", "5*Kfz8Qn2"),
        ("Python", 'password = "k7x9t2v4"', "k7x9t2v4"),
        ("Python", 'api_key = "Berlin2020?"', "Berlin2020?"),
        ("Shell", "git clone https://_:3f2504e0-4f89-41d3-9a0c-0305e82c3301@git.acme.org/x", UUID),
        ("Python", f'JWT_SECRET = "{KEY_OF_256_BYTES}"', KEY_OF_256_BYTES),
        ("Python", 'put("password", "k7x9t2v4", 3)', "k7x9t2v4"),
        ("Java", 'config.set(Keys.PASSWORD, "kT7*vRw2mQx9");', "kT7*vRw2mQx9"),
        ("C", 'if (strcmp(password, "kT7*vRw2mQx9") == 0) return 1;', "kT7*vRw2mQx9"),
        ("Ruby", "SECRET_SALT = '7c0e4b19d2a85f63b1e94c07'", "7c0e4b19d2a85f63b1e94c07"),
        ("Terraform", 'token = var.t != "" ? var.t : "7c0e4b19d2a85f63"', "7c0e4b19d2a85f63"),
        ("Python", "password = 'qwerty77Dragon!'", "qwerty77Dragon!"),
        ("YAML", "url: mongodb://app:Kp4%40Winter7@db/x", "Kp4%40Winter7"),
        (
            "JSON",
            f'{{"auths": {{"r": {{"auth": "{base64.b64encode(b"deploy:blue-tiger").decode()}"}}}}}}',
            base64.b64encode(b"deploy:blue-tiger").decode(),
        ),
    ],
)
def test_secrets_beside_what_stays(language: str, text: str, secret: str) -> None:
    assert masked(text, language) == text.replace(secret, PLACEHOLDER)


HEADERS = (
    "Authorization: Basic {}",
    '{{"headers": {{"Authorization": "Basic {}"}}}}',
    "curl -H 'Authorization: Basic {}' https://h",
    'proxy_set_header Authorization "Basic {}";',
    '{{"auths": {{"registry.acme.org": {{"auth": "{}"}}}}}}',
)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    "login",
    [
        "user:correct-horse",
        "alice:sunshine",
        "bob:summer rain",
        "deploy:blue-tiger",
        "joe:Winter",
        "kate:monkey1",
        "svc:rot-wein",
        "eve:xkcd",
        "jürgen:müllerstraße",
        "admin:letmeinplease",
        "bob:Berlin1999",
        "amy:Katze!",
    ],
)
def test_logins_of_words_are_credentials(login: str, header: str) -> None:
    encoded = base64.b64encode(login.encode()).decode()
    assert masked(header.format(encoded), "JSON") == header.format(PLACEHOLDER)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    "login",
    [
        "user:pass",
        "username:password",
        "foo:bar",
        "test:test",
        "aladdin:opensesame",
        "Aladdin:open sesame",
        "client-id:client-secret",
        "anyone:any-password",
        "myuser:mypassword",
        "hello:world",
        "john:doe",
        "user:",
        "app:app-secret",
        "consumer-key:consumer-secret",
        "user1:password1",
        "Bob:bob",
        "admin:changeit",
    ],
)
def test_logins_of_examples_stay(login: str, header: str) -> None:
    text = header.format(base64.b64encode(login.encode()).decode())
    assert masked(text, "JSON") == text


def test_passwords_that_differ_in_their_year_are_no_series() -> None:
    passwords = [f"Walrus#{year}x" for year in range(2017, 2024)]
    text = "".join(f'password_{index} = "{value}"\n' for index, value in enumerate(passwords))
    assert not any(value in masked(text, "Python") for value in passwords)


@pytest.mark.parametrize("size", [16, 30, 32, 48])
def test_base64_in_which_letters_happen_to_look_like_words(size: int) -> None:
    rng = random.Random(size)
    for _ in range(500):
        value = base64.b64encode(rng.randbytes(size)).decode()
        if "/" in value.strip("/"):
            assert masked(f'api_key = "{value}"\n', "Python") == f'api_key = "{PLACEHOLDER}"\n', value


def test_an_allowed_value_stays_and_others_do_not() -> None:
    text = 'password = "k9Xq2LmZ7w"\ntoken = "Zt8vQ1mN4cRw7yBd"\n'
    secrets = find_secrets(text, "Python", {fingerprint("k9Xq2LmZ7w")})
    assert [text[secret.start : secret.end] for secret in secrets] == ["Zt8vQ1mN4cRw7yBd"]


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


CRAFTED = (
    "-----BEGIN CERTIFICATE-----\n" * 700 + "-----END CERTIFICATE-----\n",
    "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n" + 'password="k9Xq2LmZ7w"\n',
    *("-----BEGIN PRIVATE KEY-----\n", "PuTTY-User-Key-File-2: x\nPrivate-Lines: 1\n", "eyJaaaaaaaaaaaaa.", "-eyJ"),
    *(
        'password="',
        "password\n ",
        "password type x\n",
        "://a:b",
        "insert into t(a) values ('a',",
        '"a" == ',
        "\\",
        "a-",
    ),
)


@pytest.mark.parametrize("part", CRAFTED)
@pytest.mark.timeout(60)
def test_crafted_text_is_searched_to_its_end(part: str) -> None:
    text = part * (400_000 // len(part))
    found = find_secrets(text, "YAML")
    ends = [0, *(place for one in found for place in (one.start, one.end)), len(text)]
    assert ends == sorted(ends), "in order, without overlap, within the text"


def test_a_text_of_thousands_of_secrets_is_given_up() -> None:
    with pytest.raises(SearchTooLongError):
        find_secrets("".join(f'password="{number:x}Zq9!{number}k"\n' for number in range(5000)), "Python")


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    for module in pkgutil.iter_modules(secret_rules.__path__):
        content = vars(importlib.import_module(f"{secret_rules.__name__}.{module.name}"))
        for name, value in content.items():
            for item in value if isinstance(value, tuple) else (value,):
                for pattern in item if isinstance(item, tuple) else (item,):
                    if isinstance(pattern, re.Pattern):
                        yield f"{module.name}.{name}", pattern
    for kind in announced._kinds():
        yield kind.name, kind.pattern
    for provider in announced._providers():
        yield provider.name, provider.value
    for stem in stems():
        for pattern in (literals._pattern(stem.rest), *bare._patterns(stem.rest)):
            yield stem.text, pattern


def test_no_expression_repeats_what_repeats_without_bound() -> None:
    found = list(patterns())
    assert len(found) > 300
    nested = [name for name, pattern in found if repeats(parser.parse(pattern.pattern, pattern.flags), within=False)]
    assert nested == []


def repeats(parsed: Any, *, within: bool) -> bool:
    """Whether a repetition without bound stands inside another repetition: time may grow as a power of the length."""
    for operation, argument in parsed:
        if operation in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            _, high, inner = argument
            if within and high == codes.MAXREPEAT:
                return True
            if repeats(inner, within=within or high > 1):
                return True
        elif operation is codes.BRANCH:
            if any(repeats(branch, within=within) for branch in argument[1]):
                return True
        elif operation is codes.SUBPATTERN:
            if repeats(argument[-1], within=within):
                return True
        elif operation in (codes.ASSERT, codes.ASSERT_NOT) and repeats(argument[1], within=within):
            return True
    return False
