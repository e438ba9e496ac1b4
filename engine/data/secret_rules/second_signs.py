"""Asks for a second sign beside a telling name: that words, numbers and forms of other things do not explain a value.

Every function is called for values that stand where secrets stand, and takes time linear in the value's length.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Callable
from itertools import pairwise

from engine.data.secret_rules.encoded import decoded_ascii

_METHOD = re.compile(
    r"(?!(?:[a-z]\d{1,4}){3})(?:(?:curve25519|x25519|ed25519|aes|aria|argon|bcrypt|blake|blowfish|camellia|cbc|ccm|cfb|chacha|cmac|cram|crypt|ctr|curve|des|dhe|dh|digest"
    r"|dir|dsa|ecb|ecdhe|ecdh|ecdsa|ecies|eddsa|ed|ec|es|gcm|gmac|gssapi|hkdf|hmac|hpke|hs|kem|kw|login|md|mgf|mldsa"
    r"|mlkem|ml|nist[pkb]|ntlm|oaep|ofb|padding|pbes|pbkdf|pkcs|plain|poly|ps|p|rc|rsa|rs|salsa|scram|scrypt|secp|sec|shake|sha"
    r"|siv|slh|slhdsa|mldsa|ssa|ssh|tls|t|v|with|wrap|xchacha|xts|x|a|k)\d{0,4}){1,4}[rk]?\d?",
    re.IGNORECASE,
)
"Names of methods of cryptography, with the numbers behind them: A128CBC, HS256, secp256k1; not k7x9t2v4."
_METHODS_APART = re.compile(r"[-+_/:@.]+")
_LONGEST_METHOD = 48
_SEALED = re.compile(
    r"^[A-Za-z0-9+/]{12,40}={0,2}\|\|[A-Za-z0-9+/]{16,400}={0,2}$"
    r"|^[0-9a-f]{24,32}:[0-9a-f]{32}:[0-9a-f]{2,2000}$|^[0-9a-f]{32}:[0-9a-f]{24,32}:[0-9a-f]{2,2000}$"
)
"An initial vector, a tag and what is encrypted, with marks between."
_SLOTS = re.compile(
    r"^(\$\$|%%|##|@@|~~|\|\|)[A-Za-z][\w .:/-]{0,80}\1$|#\{@?[a-z]|^[A-Za-z@_-]{2,20}\{\}|^\\\d{1,3}\$[a-z]"
    r"|%5B\w{3,40}%5D|^\$\d[.{]\w"
    r"|^%[-+ 0#]{0,3}\d{0,3}(?:\.\d{1,3})?[hlqjzt]{1,2}[xXduiosp]$"
    r"|^\.[a-z_]{2,30}=\"\$[A-Z_]{2,40}\"?$|^\\?[A-Z]\w{1,40}::\$[a-z]"
    r"|^[a-z]{1,12}=\d{1,6}\.\d{1,4}[mun]?s$"
)
"What a deployment, a format, an interpolation, a static member or a closure fills, and what a log measured."
_CODE = re.compile(
    r"^\w{2,40}\(\)$|^[A-Z]\w{2,40}\{\}[,;]?$|^[{\[(][A-Z][A-Za-z]{2,40}$|^\s?\w{1,30}=\\{0,4}\"[^\"]{0,80}\""
    r"|^[a-z]\w{0,40}(?:\.[a-z]\w{0,40}){1,4}\([\w., ]{0,60}\)$"
)
"Calls, empty literals, the start of a tuple, arguments with their names."
_STREAM = re.compile(r"[a-z]{2,20}(?:[A-Z][a-z]{1,20}){0,3}\$")
_STREAMED = re.compile(r"(?:password|secret|token|key|credential|session)s?\$", re.IGNORECASE)
"A variable that observes what it names: deviceCredentials$."
_LISTS = re.compile(
    r"^(?:[\w.]{1,12}[,;]){2,40}[\w.]{0,12}$|^[!+-]\w[\w-]{0,40}(?::[!+]?[\w-]{1,40}){2,60}$|^!\.[a-z]"
    r"|^[A-Za-z]{1,20}(?:(?:%(?:20|[89A-F][\dA-F])){1,3}[A-Za-z]{2,20}){1,8}$"
)
"Short items, ciphers to choose from, selectors, words of a query."
_FORMAL = re.compile(
    r"^\d{0,3}\*\d{0,3}[A-Z\d]{2,20}(?:-[A-Z\d]{1,20}){1,4}$|^openpgp4fpr:|^[A-Z]?[a-z]{2,15}(?:[A-Z][a-z]{1,15}){0,5}(?:MaxLen|MinLen|Min\d{1,4}Max|(?:String|Integer|Double|Float|Long|Length|Size|Count|Limit|List)(?:Max|Min|To))\d{1,5}$|^(?:[a-z][a-z\d_]{1,30}-){1,6}v?\d{1,4}\.\d{1,4}(?:\.\d{1,4})?(?:-[\d.]{1,20})?$|^#/[\w$]+/[\w/.~-]+$|^\d{0,3}\*\d{0,3}[A-Z][A-Za-z-]{1,40}$|^\*[\dA-F]{40}$|^[rsnipc]=[A-Za-z\d+/]{8,60}={0,2}$|^[A-Z]{3,10}\\r\\n|\\\d{5,7}"
    r"|\bfpr:|^[a-z]{2,12}(?:key|pub):[\da-f]{32,128}$|^GHSA(?:-[a-z\d]{4}){3}$|^CVE-\d{4}-\d{3,7}$|^RFC ?\d{3,5}\b"
    r"|^(?:[a-z]{2,12}-){1,4}rfc-?\d{3,5}$"
    r"|^[a-z]{2,3}_(?:[A-Z]{2}|\d{3})$|^(?:b2c|B2C)_\d_\w{2,60}$"
)
"""A place in a schema, a rule of a grammar, a field of SCRAM, a protocol's line, a character by its number, a
fingerprint, a public key by its prefix, an advisory, a standard, a locale, a policy of Azure."""
_IMPORT = re.compile(r"^[a-z][a-z\d-]{0,40}(?:\.[a-z\d-]{1,40}){1,4}/[a-z][\w./-]{2,100}$")
"A path of a module or image, below a host."
_HOST = re.compile(
    r"^(?:org|com|net|io|dev|edu)(?:\.[A-Za-z\d_-]{1,30}){2,10}$"
    r"|^(?=[^.]{1,80}\.[a-z])[\w-]{1,80}(?:\.[A-Za-z][\w-]{1,60}){0,4}\.(?:com|org|net|io|dev|local|internal)$"
)
"A package or a host."
_SORTED_ID = re.compile(r"^0[0-7][0-9A-HJKMNP-TV-Z]{24}$")
"ULID: a time and a random part, which sort by time."
_MODULUS = re.compile(
    r"^(?:[\w-]{342}|[\w-]{683}|[A-Za-z0-9+/]{342}==|[A-Za-z0-9+/]{683}=|[0-9a-f]{512}|[0-9a-f]{1024})$"
)
"As long as an RSA key's modulus or signature of 2,048 or 4,096 bits."
_LEAST_MODULUS = 342
_BASE32 = re.compile(r"^[A-Z2-7]{8,120}={0,6}$")
_BASE64 = re.compile(r"^[A-Za-z0-9+/]{8,400}={0,2}$")
_HEX = re.compile(r"[\da-fA-F]+$")
_LEAST_HEX = 10
"Digits; shorter ones are text by chance."
_LONG_HASH = 128
_UNSIGNED, _CERTIFIED = re.compile(r'"alg"\s*:\s*"none"', re.IGNORECASE), re.compile(r'"x5c"\s*:')
_ENDS = re.compile(r'"(?:exp|access|scope|scp)"\s*:')
"A claim of a token that opens something for a while, as registries' do, though a certificate signs it."
_DIGITS = re.compile(r"\d+")
_LEAST_COUNTED = 16
_HASH_LENGTHS = frozenset({32, 40, 56, 64, 96, 128})
_HASHED = (
    "", "password", "passw0rd", "secret", "test", "hello", "hello world", "Hello World", "Hello, World!", "world",
    "foo", "bar", "foobar", "abc", "a", "admin", "user", "root", "guest", "example", "demo", "token", "key", "message",
    "data", "1234", "12345", "123456", "1234567", "12345678", "123456789", "1234567890", "qwerty", "letmein",
    "changeme", "default", "pass", "PASSWORD", "Password", "value", "string", "content",
)  # fmt: skip
_CLAIMS = re.compile(
    r"\.?eyJ[\w+/-]{4,8000}={0,2}\.?$|eyJ[\w+/-]{4,8000}\.eyJ[\w+/-]{4,8000}\.(?:[a-z]{1,8}[_-])?sig(?:nature)?$"
)
_CODE_MARK = re.compile(r"[\[\]\"'<>()=]|/.*/|^[#.]")
_LEAST_SOLID = 0.6
"Share of letters and digits in code; passwords of keyboards' upper rows have fewer."
_PARTS = re.compile(r"[^A-Za-z0-9]+")
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[A-Z]")
_KIND = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_TELLING = re.compile(
    r"(?:(?:pass(?:word|wd|phrase)?|pwd|secret|token|key|api|auth|credential|cred|access|refresh|session|client|bearer|oauth"
    r"|jwt|sas|id|test|my|user|admin|app|dev|prod|stage|fake|some|new|old|value|valid|wrong|expired)s?){1,6}",
    re.IGNORECASE,
)
"Words that name a value by what it is, without a mark between."
_CHOSEN = re.compile(r"[!@#$%^&*]|\d\d[?~]$")
"Marks that people add to passwords, and names hardly have."
_LEAST_UNEXPLAINED = 6
"Characters of a secret beside its words and numbers."
_LEAST_CASED, _LEAST_NUMBERED = 3, 4
"The same, where it has a number and letters of both sizes, or several numbers."
_SHORT_NUMBER, _LONGEST_NUMBER = 4, 12
"Digits behind a word, and of a date or a number between marks."
_MOST_CHANGES = 4
"Between letters of one size and digits, without a mark; what changes more often is a machine's."


def is_method(value: str) -> bool:
    """Tells whether a value names methods of cryptography: A128CBC-HS256, ECDH-ES+A256KW."""
    if len(value) > _LONGEST_METHOD:
        return False
    first, *others = _METHODS_APART.split(value)
    return _METHOD.fullmatch(first) is not None and all(
        not part or part.rstrip("fsFS").isdigit() or _METHOD.fullmatch(part) for part in others
    )


def is_formal(value: str) -> bool:
    """Tells whether a value is a slot, code, a list or what a standard writes: no password either."""
    return any(pattern.search(value) for pattern in (_SLOTS, _CODE, _LISTS, _FORMAL))


def is_sealed(value: str) -> bool:
    """Tells whether a value is what is encrypted, beside its initial vector."""
    return _SEALED.match(value) is not None


def is_place(value: str) -> bool:
    """Tells whether a value is a module's path, a host, or an identifier that sorts by time."""
    return any(pattern.match(value) for pattern in (_IMPORT, _HOST, _SORTED_ID))


def is_modulus(value: str) -> bool:
    """Tells whether a value is as long as an RSA key's modulus or a signature by one."""
    return len(value) >= _LEAST_MODULUS and _MODULUS.match(value) is not None


def is_claims(value: str) -> bool:
    """Tells whether a value is a token's head or claims that nothing signs: JSON in base64, and nothing else."""
    return value.startswith(("eyJ", ".eyJ")) and (_CLAIMS.match(value) is not None or is_statement(value))


def is_statement(token: str) -> bool:
    """Tells whether a web token's head says that nothing signs it, or that a certificate does: anybody may read it."""
    head, claims = (decoded_ascii(part) or "" for part in [*token.split("."), ""][:2])
    return _UNSIGNED.search(head) is not None or (_CERTIFIED.search(head) is not None and _ENDS.search(claims) is None)


def is_hash(value: str) -> bool:
    """Tells whether a value is as long as a hash of 512 bits in hexadecimal digits."""
    return len(value) == _LONG_HASH and _HEX.match(value) is not None


def has_code_marks(value: str) -> bool:
    """Tells whether a value has marks of paths and code; where words make it up, too, it is no password."""
    return _CODE_MARK.search(value) is not None and sum(c.isalnum() for c in value) > _LEAST_SOLID * len(value)


@functools.cache
def _known_hashes() -> frozenset[str]:
    texts = [word + number for word in _HASHED for number in ("", "1", "123")]
    methods = (hashlib.md5, hashlib.sha1, hashlib.sha224, hashlib.sha256, hashlib.sha384, hashlib.sha512)
    return frozenset(method(text.encode(), usedforsecurity=False).hexdigest() for text in texts for method in methods)


def is_known_hash(value: str) -> bool:
    """Tells whether a value is the hash of a word that tests and examples hash."""
    return len(value) in _HASH_LENGTHS and value.lower() in _known_hashes()


def is_counting(value: str) -> bool:
    """Tells whether numbers that follow each other, of two digits each, make up half of a value: …101112131415."""
    longest = max(_DIGITS.findall(value), key=len, default="")
    if len(longest) * 2 < len(value) or len(longest) < _LEAST_COUNTED:
        return False
    for first in (0, 1):
        numbers = [int(longest[place : place + 2]) for place in range(first, len(longest) - 1, 2)]
        if sum(after - before == 1 for before, after in pairwise(numbers)) * 2 >= len(numbers):
            return True
    return False


def base32_text(value: str) -> str | None:
    """Returns the text that a value is base32 of, if it is one."""
    if not _BASE32.match(value):
        return None
    bare = value.rstrip("=")
    try:
        return _text(base64.b32decode(bare + "=" * (-len(bare) % 8)))
    except binascii.Error:
        return None


def login_text(value: str) -> str | None:
    """Returns user and password of SASL's PLAIN that a value is base64 of: texts with NUL between."""
    if not _BASE64.match(value):
        return None
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        return None
    return _text(raw.replace(b"\0", b" ")) if b"\0" in raw else None


def hex_text(value: str) -> str | None:
    """Returns the text that a value is the hexadecimal digits of, if it is one."""
    if len(value) < _LEAST_HEX or len(value) % 2 or not _HEX.match(value):
        return None
    return _text(bytes.fromhex(value))


def _text(raw: bytes) -> str | None:
    return raw.decode("ascii") if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in raw) else None


def is_explained(value: str, is_wordlike: Callable[[str], bool]) -> bool:
    """Tells whether words, short numbers and dates make up a value but for a few characters: a name, no secret.

    Args:
        value: What is looked at.
        is_wordlike: Whether letters follow each other as in words.
    """
    if _STREAM.fullmatch(value) and _STREAMED.search(value):
        return True
    if _CHOSEN.search(value):
        return False
    unexplained = numbers = 0
    for part in _PARTS.split(value):
        if part.isdigit() and len(part) <= _LONGEST_NUMBER:
            numbers += 1
            continue
        if len(_KIND.findall(part)) > _MOST_CHANGES:
            return False
        pieces = _PIECE.findall(part)
        for number, piece in enumerate(pieces, start=1):
            if piece.isdigit():
                numbers += 1
                ends = number == len(pieces) and len(piece) <= _SHORT_NUMBER
                unexplained += 0 if ends else len(piece)
            elif not (_TELLING.fullmatch(piece) or (len(piece) >= 4 and is_wordlike(piece))):
                unexplained += len(piece)
        if unexplained >= _LEAST_UNEXPLAINED:
            return False
    # A person who adds numbers to capitals, or in two places, makes a password: Winter-YfEOi7, Summer83_RK67.
    if numbers and not (value.islower() or value.isupper()):
        return unexplained < (_LEAST_CASED if numbers == 1 else _LEAST_CASED - 1)
    return unexplained < (_LEAST_NUMBERED if numbers > 1 else _LEAST_UNEXPLAINED)
