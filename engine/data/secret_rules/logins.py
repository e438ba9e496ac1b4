"""Tells a user and a password that were encoded together from the pairs that examples and tests write."""

from __future__ import annotations

import re
import unicodedata
import urllib.parse

from engine.data.secret_rules.values import is_placeholder, is_sequence

_LOGIN = re.compile(
    r"(?:(?:an?|and|the|my|your|our|any|some|user|name|log|client|consumer|customer|app|application|api|admin|root|guest"
    r"|test|demo|example|default|bad|wrong|incorrect|encoded|good|valid|right|correct|old|new|other|basic|auth|oauth|passphrase|password"
    r"|passwd|passw|pass|pwd|pw|secret|token|key|id|code|word|value|string|credential|cred|service|server|proxy|super"
    r"|very|open|sesame|hello|world|foo|bar|baz|qux|doe|nimda|change|me|it|let|in|abc|xyz|asdf|passe|here|something|anything"
    r"|whatever|blah)s?[\W_]{0,2}){1,6}\d{0,3}\W?",
    re.IGNORECASE,
)
"What examples and tests have for a password: words that say what it is, and the pairs that standards write."
_LOGIN_WORDS = frozenset({"пароль", "密码", "密碼", "パスワード", "비밀번호", "암호"})


def is_login(text: str) -> bool:
    """Tells whether a text that was encoded is a user and a password; there, one of words is a password, too."""
    user, _, password = (urllib.parse.unquote(text) if "%" in text else text).strip().partition(":")
    password = password.strip()
    # Tests of other letters write pàss and pässwörd.
    bare = "".join(c for c in unicodedata.normalize("NFKD", password) if not unicodedata.combining(c))
    solid = "".join(filter(str.isalnum, bare))
    return (
        len(solid) > 2
        and len(set(solid)) > 2
        and password.casefold() != user.strip().casefold()
        and not _names_itself(user.strip(), bare)
        and not (is_placeholder(password) or is_placeholder(bare) or is_sequence(solid))
        and not (_LOGIN.fullmatch(bare) or password in _LOGIN_WORDS)
    )


_OWN_NAME = re.compile(
    r"(?:[-_.]?(?:client|app|oauth|api|service|user|shared|basic|auth)){0,4}[-_.]?(?:secret|password|passwd|token|key)"
)
"What stands behind a user's first word in such a password."
_KIND = re.compile(
    r"[-_.](?:id|client|app|oauth|api|service|user|name|account|key)\b|(?<=[a-z])(?:Id|Client|App|User)\b"
)
"What such a user says to be; a name alone is a person's or a machine's, who may well log in so."


def _names_itself(user: str, password: str) -> bool:
    """Tells whether a password says whose and what it is: dex-client-secret of dex-client-id."""
    if _KIND.search(user) is None:
        return False
    user, password = user.casefold(), password.casefold()
    first = re.split(r"[-_.]", user, maxsplit=1)[0]
    return len(first) > 2 and password.startswith(first) and _OWN_NAME.fullmatch(password, len(first)) is not None
