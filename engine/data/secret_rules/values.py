"""Judges values: whether one looks made up by a machine or chosen as a password, and not like a word, path or name."""

from __future__ import annotations

import functools
import math
import re
import urllib.parse
from collections import Counter
from enum import IntEnum
from itertools import pairwise

from engine.assets import asset
from engine.data.secret_rules.other_things import (
    encoded_words,
    has_rules,
    has_word_parts,
    is_address,
    is_ciphertext,
    is_code,
    is_composed,
    is_counted_up,
    is_definition,
    is_expression,
    is_identifier,
    is_list,
    is_monotonous,
    is_name,
    is_prose,
    is_public,
    is_template,
)
from engine.data.secret_rules.second_signs import (
    base32_text,
    has_code_marks,
    hex_text,
    is_claims,
    is_counting,
    is_explained,
    is_formal,
    is_hash,
    is_known_hash,
    is_method,
    is_modulus,
    is_place,
    is_sealed,
    login_text,
)


class Evidence(IntEnum):
    """How much a value's place says about it; the less it says, the more the value itself must."""

    PASSWORD = 0
    "A password is assigned: people choose short ones."
    NAMED = 1
    "It is assigned to a telling name."
    NEAR = 2
    "It stands in the same statement as a telling name."
    ALONE = 3
    "Nothing but the value speaks for itself."


_PLACEHOLDER = re.compile(
    r"example|change.{0,3}(?:me|it|this)|place.?holder|(?<![a-z])your(?![a-z])|dummy|sample|redact|insert[-_ ]|replace"
    r"|(?<![a-z])(?:your|my|our)[-_ .]?(?:own|secret|super|pass|token|api|key|very|real|app|db|client|access|user|name"
    r"|org|account|bot|private|auth|server|strong|value)|todo|fixme"
    r"|x{4}|\*{3}|\.{3}|…|•|#{3}|deleted"
    r"|\[(?:your[-_ ]?)?(?:pass\w{0,6}|secret|token|key)\]|-{4}|_{4}"
    r"|(?<![A-Za-z])(?:fake|mock)|(?:fake|mock)(?![A-Za-z\d])|not.?(?:a.?)?(?:real|secret|used|token|password|key|valid)"
    r"|(?<![a-z])not[-_ ](?:base\d\d|hex|json|jwt|uuid|encoded|found|set)|yyyy.?mm|hh:mm|invalid"
    r"|secret[-_]?(?:here|key|value|token|pass)|goes.?here|foo\W{0,3}bar|^(?:qwertyuiop|asdfghjkl|zxcvbnm){2,4}$"
    r"|(?:^|[-_])(?:foo|bar|baz|qux|tests?|testing|none|null|nil|undefined|true|false|default|demo)(?:$|[-_\d])|^test"
    r"|deadbeef|^(?:hunter2|letmein|qwerty)\w{0,3}$"
    r"|^(?:not|isnt|wrong|bad|incorrect|invalid|non)[-_ ]?(?:an?|the|my|your)?[-_ ]?"
    r"(?:right|correct|real|actual|valid|good|same)?[-_ ]?(?:secret|pass|token|key)[a-z]{0,20}\W{0,4}\d{0,4}\W{0,4}$"
    r"|^(?:some|any|the|an?|wrong|bad|good|correct|old|new|super|very|top|my)[-_ ]?(?:secret|pass|token|key|api|random)"
    r"|^[+<>#-]?pass(?:word|wd|phrase)?[\d_!.*-]{0,10}$|^p[a@4][s5$]{2}w[o0]rd[\d!@#$_.-]{0,6}$"
    r"|^(?:(?:my|test|some|db)[-_]?)?(?:user(?:name)?|passw?d?|password|test|pwd|secret|token|key|admin|root|guest|login|welcome|spam|eggs|abc\w?|pw|value|string|str|hello"
    r"|motdepasse|contrasena|contraseña|passwort|kennwort|senha|wachtwoord|has[lł]o|parola|salasana|postgres|mysql|redis|mongo|rabbitmq|minio|minioadmin)[-_]?\d{0,10}!?$",
    re.IGNORECASE,
)
_PLACE_OF_A_SECRET = re.compile(
    r"^[a-z]{2,12}_123\d*$|^(?:api|access)[-_]?key\d{0,6}$|/X{8,}$|^value\W?\d", re.IGNORECASE
)
"What examples name a value of theirs."
_REFERENCE = re.compile(
    r"^\[[^\[\]]{1,40}\]\[[^\[\]]{1,40}\]$|^(?:self|static|parent)::|^-{1,2}[a-z]|^<.*>$|\[[@\w^-]{0,12}(?:a-z|A-Z|0-9)|^\*\.|\*\.[a-z]|\{\$\w+\}|\\\([A-Za-z]\w*|^\[\w+\]\.\[|^\$\.\w|\[[A-Z][a-z]\]|^[a-z,]+->[a-z,]*$|\(\?[P:=!<]|\{[A-Za-z_][\w.]*(?:[:!(\[][^{}]*)?\}|<\|"
    r"|^[$%@&][A-Za-z_{(]|\$\{|\$\(|\{\{|\}\}|<%|%\(\w|^%[A-Za-z_]\w*%|^<[^<>]*>$|^\[[^\[\]]*\]$|^\{[^{}]*\}$|^__\w+__$|\{[A-Za-z_]\w*\}"
    r"|^#\{|^:[a-z_]+(?:\d*|=\w{0,20})$|^!(?:Ref|Sub|GetAtt|Join|Select|If|vault|secret|env|include|reference)|^%[sdvq]"
    r"|^(?:self|this|process|os|env|config|settings|options|req|request|params|props|args|data|var"
    r"|local|each|module|secrets|vars|github|inputs|steps|needs|ctx|context|state|user|credentials|creds|event)\."
    r"|:/bin/\w{0,4}sh$|\]\(|^\[@|^\.\\{0,8}\"?[a-z_]{1,40}\\{0,8}\"?[\[.]|\.\*|\(\$[a-z]|AES(?:128|256)-|SHA(?:256|384)(?::|$)"
    r"|,proto\d$|^##\w{1,60}##$|^\w{1,40}[!?]/\d$|^\[[A-Z][\w.]{1,60}\]::|^b64(?:enc|dec)(?:ode)?$|=\$[A-Z_{]|^//[a-z]+[./]|[/%]\w{0,10}aws4_request$|^[A-Z][A-Za-z]{2,30}(?:\.[A-Z][A-Za-z]{2,30}){1,4}/[a-z]|[:@]\$[A-Z_]{3,}|^/.*[\\\[(^$].*/[gimsuy]{0,4}$|\*\*\w{3,20}\*\*|^/.*%[sdv]$|^[a-z]{2,20}(?:\.[a-z]\w{0,30}){1,4}#[a-z]\w{1,40}$|^(?=(?:[^:]{0,9}:){4})[\da-fA-F:]+-[\da-fA-F:]+$|^s([/|#,]).+\1.*\1[gimpe]{0,3};?$|^@@.+@@$"
    r"|%24\(|^\\{1,4}u[^0-9a-f]|%[\w.]{2,40};|^[\[{]\s{0,20}\\{0,4}[\"']|<[a-z][a-z _-]{2,30}>|\[[A-Z_]{4,40}\]"
    r"|^[a-z\d-]{2,20}:[A-Z][A-Za-z]{3,60}$|===|^\)\.\w|\(\[\^"
    r"|^\(\w{1,40}:[\d.]{3,60}:=|^[A-Z][A-Z\d_]{3,40}=/"
    r"|^/(?:usr|app|home|var|opt|etc|root|bin|lib|tmp|srv|mnt)/?[\w/.:=-]*$|^arn:|^ref\+|^vault:|^secret://|^op://|^ssm:|^sops:|ENC[\[(]|^W/\"|^\w{1,20}:\\?\"|^\(\(.*\)\)$|^@[\w.-]{1,80}[:/?]|^file:|^env:|\\[dwsbDWSB]|^\^|[)\]}*+?]\$$|^urn:|^data:|^pass:|xref:|^(?:id|uuid|name):",
)
_LOCATION = re.compile(
    r"^\.{1,2}/|^~/|^[A-Za-z]:\\|^[A-Za-z][\w.-]{0,60}(?:\\{1,2}[A-Za-z][\w.-]{0,60}){1,20}$|^[0-9a-f:]{0,30}::[0-9a-f:]{0,30}$|://|^/?[\w-]+(?:[/.][\w-]{1,100}){0,20}\.(?:py|js|ts|tsx|jsx|json|ya?ml|txt|md|html?|key|pem|crt|cer|pub|go|rs|java|rb|php|sh"
    r"|conf|cfg|ini|toml|xml|png|jpg|svg|css|env|local|com|org|net|io|dev|sql|db|log|proto|h|c|cc|cpp|p12|jks|p8|pk8|prv|der|jwk|bin|dat|csv|zip|gz|tar|j2|tmpl|tpl|erb|ini|pdf|gif|ipynb)$"
    r"|^[\w./-]{0,200}\.(?:md|html?|rst|adoc)#|^/[\w.-]{1,60}(?:/[\w.-]{0,60}){0,20}\?\w"
    r"|^\d+(?:\.\d{1,20}){1,8}$|^[\w.+-]+@[\w-]+\.[\w.]+$|^[\w/.-]{1,200}\.[a-z]{1,4}:\d{1,6}:?$",
    re.IGNORECASE,
)
_PATH = re.compile(
    r"^(?:\.{0,2}|~)/[\w.@+-]+(?:/[\w.@+ -]{0,100}){0,40}$|^~?[A-Za-z_][\w-]*(?:\.[\w-]{1,100}){1,20}$"
    r"|^[\w:.-]+(?:\|[\w:,.-]{1,60}){1,20}$"
    r"|^[#.][A-Za-z][\w-]*$|^[\w-]+(?:/[\w.-]{1,100}){1,40}$|^[A-Za-z_][\w.]*(?:[<>!=]=|[<>=])[\w.+-]{1,40}\|?$"
)
"Paths, dotted names, alternatives, comparisons and named arguments, where words make up most of them."
_CALL = re.compile(r"^([A-Za-z_][\w.:>-]*)[(\[]")
_ALGORITHM = re.compile(
    r"^(?:aes|hmac|sha|md5|rsa|ecdsa|ed25519|pbkdf2|bcrypt|argon2|scrypt|[hrep]s\d{3}|des|x509|pkcs|oauth|openid|ntlm|scram|basic|bearer|jwt"
    r"|prime\d|nist[pkb]\d|sec[pt]\d|brainpool|base64|utf|iso|gpt|bert|llama|t5|int|uint|float|bf)[\w/.+-]{0,30}$",
    re.IGNORECASE,
)
_TRIVIAL = re.compile(r"(?:foo|bar|baz|qux|test|pass|password|secret){1,4}", re.IGNORECASE)
"Words of tests, which marks within them make no password: pa:ss, t$es%t."
_MARK = re.compile(r"[\W_]")
_LEAST = 5
"Characters of a secret."
_SNAKE = re.compile(
    r"^[a-z]+\d{0,3}(?:[_.:/,-][a-z]{0,60}\d{0,4}){1,30}$|^[A-Z]+\d{0,3}(?:[_.:/-][A-Z]{0,60}\d{0,4}){1,30}$"
)
"A name of several parts, each of letters of one size with a number behind."
_DIGEST_PREFIX = re.compile(
    r"^\|1\|[A-Za-z0-9+/]{4}|^(?:pbkdf2|bcrypt|argon2|scrypt)\w{0,12}\$|^SCRAM-SHA-\d+\$|^[\w.@-]{1,40}:\${1,2}(?:2[aby]?|1|5|6|apr1|argon2\w+)\$|(?:^|[:_-])hash[:=]|^(?:sha\d+|md5|blake\d\w?|signature|\{?ssha\d*\}?)[-:=$}]|^md5[0-9a-f]{32}$|^\{(?:s?sha|md\d|pbkdf2|s?crypt|bcrypt|argon2)[\w@.-]{0,40}\}|^\\?\$(?:2[aby]?|1|5|6|apr1|argon2\w+|scrypt)\\?\$",
    re.IGNORECASE,
)
_UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", re.IGNORECASE)
_HEX = re.compile(r"^(?:0x)?[0-9a-fA-F]+$")
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]|\d+")
_BRACKETS = re.compile(r"[(){}\[\]<>=,;/\"'|\\]")
"Marks of code, beside which words are names."
_TWO_DIGITS = re.compile(r"\d\D*\d")
_NAME_LIKE = re.compile(r"^[\w./:@,|+-]+$")
_PUBLIC = re.compile(
    r"^(?:MFkwEwYHKoZIzj|MIIBI?j?[AC]|MII[BCD]I?[jo]ANBg|[\w+/]{4,40}DQYJKoZIhvcNAQEBBQAD|AAAA\w{1,3}(?:NzaC|zc2g|c3No)|MIGfMA0G|MCowBQYDK2Vw|AAAA[BCE][23N]|mQ(?:Gi|IN|EN|GN|CN)[A-Z]|mDME|mI0E|xs[BF]N|iD8D|iDYE|iQ[IEJ][zc]|iHUE|ssh-|pk_|pk\.|LS0tLS1CRUdJTiB(?:DRVJ|QVUJM))"
)
"How public keys and certificates begin."
_UNIT = re.compile(
    r"^0x[\da-fA-F]{1,4}$|^[\d.,:/ x-]+[a-zA-Z%]{0,3}$|^\d+/(?:s|sec|second|min|minute|hour|day)\b"
    r"|^\d+(?:\.\d{1,5}){2,20}[:/]|^v?\.?\d+(?:\.\d{1,20}){1,8}(?:[-+.]?[a-z]+[.-]?\d*)?$|^[+-]?\d[\d_.eE+-]*(?:[a-zA-Z]{0,2}|[iu]\d{1,3})$"
    r"|^v\d{1,4}\.\d{1,4}\.\d{1,4}-|^\d{1,6}/[smhd](?:[/,]|$)|^0x[\da-fA-F.]+p[+-]?\d+$"
)
_SHORT_PIECES = 3.0
"Letters from one capital to the next in random ones; in names of several words they are twice as many."
_MOST_ALIKE = 2.7
"The same, where nothing but the value speaks for itself."
_MOST_IN_ORDER = 0.45
"Share of neighbours that differ by one; of random hexadecimal digits an eighth do."
_MOST_NAMED = 0.72
"Share of a name's characters that its words make up."


@functools.cache
def _following() -> tuple[bytes, ...]:
    """Returns how often one letter follows another, as digits: 26 rows for the first, 26 columns for the second."""
    lines = asset("letter_pairs.txt").read_text(encoding="ascii").splitlines()
    return tuple(bytes(int(digit) for digit in line) for line in lines if not line.startswith("#"))


def is_wordlike(word: str) -> bool:
    """Tells whether letters follow each other as in words; `word` is of a to z, small or capital."""
    table = _following()
    codes = [ord(letter) - 97 for letter in word.lower()]
    score = sum(table[first][second] for first, second in pairwise(codes))
    # A tenth of random words of five letters and a tenth of real ones are on the wrong side.
    return score >= 4.7 * (len(codes) - 1)


def entropy(value: str) -> float:
    """Returns the Shannon entropy of the characters, in bits a character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def is_placeholder(value: str) -> bool:
    """Tells whether a value stands for another: an example, a word in its place, a variable, a call, a path."""
    bare = value.lstrip("\\'\"")
    if _PLACEHOLDER.search(value) or _REFERENCE.search(bare) or _LOCATION.search(value) or len(set(value)) < 4:
        return True
    if is_sequence(value) or _PLACE_OF_A_SECRET.search(value):
        return True
    if value.endswith("=") and (solid := value.rstrip("=")) and _PLACEHOLDER.search(solid):
        return True
    if (call := _CALL.match(value)) is not None and (len(call[1]) <= 3 or words_share(call[1]) >= 0.5):
        return True
    return _PATH.match(value) is not None and words_share(value) >= 0.4


def is_sequence(value: str) -> bool:
    """Tells whether letters and digits mostly follow each other in their order: 1234567890abcdef, abcd1234."""
    solid = [c for c in value.lower() if c.isalnum()]
    # 1a2b3c: letters and digits take turns, each in their order.
    takes_turns = len(solid) > 5 and all(a.isdigit() != b.isdigit() for a, b in pairwise(solid))
    codes = [ord(c) for c in (solid[::2] + solid[1::2] if takes_turns else solid)]
    steps = sum(second - first in (1, -1, -9) for first, second in pairwise(codes))
    return len(codes) > 1 and steps >= _MOST_IN_ORDER * (len(codes) - 1)


def is_digest(value: str) -> bool:
    """Tells whether a value says of itself that it is a hash, or is a public key."""
    return bool(_DIGEST_PREFIX.search(value) or _PUBLIC.search(value))


def words_share(value: str) -> float:
    """Returns the share of letters and digits that belong to words of three letters and more."""
    counted = words = 0
    for piece in _PIECE.findall(value):
        counted += len(piece)
        if len(piece) >= 3 and piece[0].isalpha() and is_wordlike(piece):
            words += len(piece)
    return words / counted if counted else 1.0


_LEAST_SPACES = 3
"Of a sentence."
_PHRASE = re.compile(r"[a-z ]+")
"Words alone may be a passphrase, or what a wallet is restored from."


def _is_plain(text: str) -> bool:
    """Tells whether a text that was encoded is JSON, words, an example, or a user and a password that are.

    Encoded JSON, a token's head among it, is a secret where one is found within.
    """
    if text.count(" ") >= _LEAST_SPACES and words_share(text) >= _MOST_NAMED and not _PHRASE.fullmatch(text):
        return True
    return text.startswith(('{"', "[{")) or all(
        not part or is_prose(part) or is_placeholder(part) or is_name(part, is_wordlike)
        for part in (text.split(":") if text.count(":") == 1 else [text])
    )


def _is_other_thing(value: str, evidence: Evidence) -> bool:
    """Tells whether a value is no secret by what it is made of; where a password is due, only by what is sure."""
    if is_ciphertext(value) or is_address(value) or is_monotonous(value) or is_counted_up(value):
        return True
    if is_sealed(value) or is_formal(value) or is_method(value):
        return True
    text = encoded_words(value) or base32_text(value) or login_text(value) or hex_text(value)
    if is_claims(value) or (text is not None and _is_plain(text.strip())):
        return True
    if is_public(value) or is_definition(value) or is_expression(value):
        return True
    if evidence == Evidence.PASSWORD:
        if is_hash(value) or is_trivial(value) or (has_code_marks(value) and words_share(value) >= _MOST_NAMED):
            return True
        return has_rules(value, is_wordlike) or (value.islower() and is_identifier(value, 4))
    # 256 random bytes are as long as a modulus: a key of a token's signature that a program drew.
    if is_place(value) or (evidence > Evidence.NAMED and is_modulus(value)) or is_explained(value, is_wordlike):
        return True
    if has_word_parts(value, is_wordlike, alone=evidence == Evidence.ALONE):
        return True
    return is_template(value) or is_composed(value) or is_code(value) or is_list(value) or is_name(value, is_wordlike)


_COMMAND_LINE = re.compile(r"[A-Z]{3,10}(?: [A-Z]{3,10})?\\r\\n")
"A protocol's line, with its end as a string spells it."
_ESCAPE = re.compile(r"&#?\w{1,8};|\\{1,8}(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|[nrtabfv0])")


@functools.lru_cache(maxsize=4096)
def is_secretive(value: str, evidence: Evidence) -> bool:
    """Tells whether a value is taken for a secret where it stands."""
    if _COMMAND_LINE.match(value):
        return False
    if "\\" in value or "&" in value:
        value = _ESCAPE.sub("", value)
    value = value.strip("\"'`").removeprefix('\\"').removesuffix("\\")
    if evidence == Evidence.ALONE and not _is_mixed(value):
        return False  # what most names fail by, and costs least
    if "%" in value:
        if is_short_quoted(value):
            return False
        value = value if evidence == Evidence.PASSWORD else _unquoted(value)
    if (
        len(value) < _LEAST
        or len(value) > 4096
        or is_placeholder(value)
        or is_digest(value)
        or _is_other_thing(value, evidence)
        or _UNIT.search(value.strip("\\()[]"))
        or is_counting(value)
        or is_known_hash(value)
    ):
        return False
    if sum(ord(c) > 0x24F for c in value) * 2 > len(value):
        return False  # words of another script
    letters = sum(c.isalpha() for c in value)
    digits = sum(c.isdigit() for c in value)
    if not letters:
        # Only digits and marks: a number, unless it is long or mixed.
        return (
            evidence <= Evidence.PASSWORD
            and digits >= 4
            and " " not in value
            and bool(re.search(r"[!@#$%^&*]", value))
            and len(value) > 7
        )
    if any(ord(c) > 0x2E7F for c in value):
        return False
    if _UUID.search(value):
        return evidence == Evidence.NAMED  # a password is hardly one, but a product with "pass" in its name has one
    if " " in value or "\t" in value or "\n" in value:
        return _is_secretive_phrase(value, evidence)
    if not digits and not value.isascii():
        return False
    pieces = _PIECE.findall(value)
    if not pieces or (_ALGORITHM.match(value) and (len(value) < 20 or evidence > Evidence.NAMED)):
        return False
    share = words_share(value)
    named = any(len(piece) >= 4 and piece.isalpha() and is_wordlike(piece) for piece in pieces)
    if named and _SNAKE.match(value) and (evidence > Evidence.PASSWORD or share >= 0.6 or len(value) > 30):
        return False
    alike = len(value) - sum(map(len, pieces))
    mean = sum(map(len, pieces)) / len(pieces)
    marks = sum(not (c.isalnum() or c in "_-./:") for c in value)
    classes = (digits > 0) + (marks > 0) + any(c.isupper() for c in value) + any(c.islower() for c in value)
    if _NAME_LIKE.match(value) and not marks and share >= _MOST_NAMED:
        if evidence > Evidence.NAMED or len(value) < 8:
            return False
        # A word with numbers in two places and both cases is a password; so is a word and a number, where one is due.
        numbers = sum(piece[0].isdigit() for piece in pieces)
        if evidence != Evidence.PASSWORD:
            return _is_word_with_more(value, pieces, classes)
        if numbers >= 2 and classes >= 3 and (value[0].islower() or not value.istitle()):
            return True
        if alike and digits and classes >= 3 and len(pieces) >= 4 and share < 0.85:
            return True
        return not alike and digits >= 2 and (value[0].isupper() or digits >= 3)
    bits = entropy(value)
    if evidence == Evidence.NAMED and not marks and share >= _MOST_NAMED - 0.12:
        return _is_word_with_more(value, pieces, classes)
    if evidence <= Evidence.NAMED:
        if digits or (marks and (classes >= 3 or marks >= 3 or share < 0.4)):
            return bits >= (2.0 if evidence == Evidence.PASSWORD else 2.5) and (
                len(value) >= 8 or (evidence == Evidence.PASSWORD and len(value) >= 6 and classes >= 2)
            )
        return len(value) >= 12 and bits >= 2.9 and (share < 0.35 or (share < 0.6 and mean <= _SHORT_PIECES))
    if evidence == Evidence.NEAR:
        if len(value) < 8 or bits < 2.7:
            return False
        if digits and marks and classes >= 3 and (share < 0.5 or not _BRACKETS.search(value)):
            return True
        return len(value) >= 10 and share <= 0.5 and (digits > 0 or len(value) >= 16) and mean <= 3.5
    return share <= 0.3 and bits >= 3.2 and _is_mixed(value)


def is_short_quoted(value: str) -> bool:
    """Tells whether what percent signs and digits stand for is shorter than a secret: pw%20d."""
    return "%" in value and len(urllib.parse.unquote(value)) < _LEAST


def is_example(text: str) -> bool:
    """Tells whether words of a text say that it is an example or what it stands for."""
    return _PLACEHOLDER.search(text) is not None


def is_trivial(value: str) -> bool:
    """Tells whether words of tests with a few marks among them make up a password."""
    solid = _MARK.sub("", value)
    return 2 * (len(value) - len(solid)) <= len(solid) and _TRIVIAL.fullmatch(solid) is not None


def _unquoted(value: str) -> str:
    """Returns what percent signs and digits stand for, twice quoted texts too, where that is ASCII."""
    for _ in range(2):
        plain = urllib.parse.unquote(value)
        if plain.isascii() and plain.isprintable():
            value = plain
    return value


def _is_mixed(value: str) -> bool:
    """Tells whether a value is as long as one must be that speaks for itself, and changes as often."""
    if len(value) < 20 or not _TWO_DIGITS.search(value) or _HEX.search(value):
        return False
    pieces = _PIECE.findall(value)
    return sum(map(len, pieces)) <= _MOST_ALIKE * len(pieces)


def _is_word_with_more(value: str, pieces: list[str], classes: int) -> bool:
    """Tells whether half of a value at least is beside its words of four letters and more: chosen, not named."""
    words = sum(len(piece) for piece in pieces if len(piece) >= 4 and piece.isalpha() and is_wordlike(piece))
    return len(value) >= 10 and classes >= 3 and words <= 0.5 * len(value)


_OPTION = re.compile(r"\s-{1,2}[a-zA-Z][\w-]*\s")
"In a text with spaces it is a command's."


def _is_secretive_phrase(value: str, evidence: Evidence) -> bool:
    """Tells whether a text with spaces is a secret: what a program made, or a password in groups."""
    if evidence > Evidence.NEAR or len(value) > 200 or "\n\n" in value or _OPTION.search(value):
        return False
    words = value.split()
    if len(words) == 4 and all(len(word) == 4 and word.isalpha() and word.islower() for word in words):
        return sum(is_wordlike(word) for word in words) <= 2  # Google's app passwords
    solid = [word for word in words if len(word) > 2]
    marks = sum(not (c.isalnum() or c.isspace()) for c in value)
    return (
        len(value) >= 20
        and entropy(value) > 4
        and marks / len(value) > 0.15
        and words_share(value) < 0.4
        and bool(solid)
    )
