"""The search for secrets reads crafted text to its end; no expression's time grows faster than the text."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.data import secret_rules
from engine.data.secret_rules import announced, bare, literals
from engine.data.secret_rules.names import stems
from engine.data.secrets import SearchTooLongError, find_secrets

if sys.version_info >= (3, 11):
    from re import _constants as codes  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as codes
    import sre_parse as parser


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
