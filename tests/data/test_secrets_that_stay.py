"""What only looks like a secret stays; a secret beside it does not."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import textwrap
from collections.abc import Callable

import pytest
from support.masking import masked, pem
from support.secret_forms import look_alikes

from engine.data.secrets import PLACEHOLDER, find_secrets, fingerprint


def test_look_alikes_stay() -> None:
    cases = look_alikes()
    wrong = [text for text, language in cases if find_secrets(text, language)]
    assert len(cases) > 280
    assert len(wrong) <= 0.02 * len(cases), wrong


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


def test_tokens_that_are_shortened_or_part_of_data_stay() -> None:
    data = base64.b64encode(random.Random(1).randbytes(48)).decode()
    for text in ("sk-ant-api03-k9Xq2LmZ7wT4vB8nR3cY6sD1fG5hJ0kL...", f"{data[:40]}/AKIAQ7MZ3XK5WV2NB6TD+{data[40:]}"):
        assert masked(text, "Text") == text


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


def test_an_allowed_value_stays_and_others_do_not() -> None:
    text = 'password = "k9Xq2LmZ7w"\ntoken = "Zt8vQ1mN4cRw7yBd"\n'
    secrets = find_secrets(text, "Python", {fingerprint("k9Xq2LmZ7w")})
    assert [text[secret.start : secret.end] for secret in secrets] == ["Zt8vQ1mN4cRw7yBd"]
