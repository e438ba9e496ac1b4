"""What is looked at before a text is searched leaves out nothing that the search would find."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import pytest
from support.secret_forms import planted

from engine.data.secret_rules import commands, literals, names, searched_text
from engine.data.secret_rules.searched_text import SearchedText
from engine.data.secrets import Secret, find_secrets

BORDER = re.compile(r"[()\[\]{}<>\"'`,;\\\s]+", re.ASCII)
SHAPES: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n") + "\r\n",
    "tabs": lambda text: text.replace(" ", "\t"),
    "far apart": lambda text: re.sub(r"(?<=[\w\"']) ?([:=]) ?", r"\1".join([" " * 33] * 2), text),
    "next line": lambda text: re.sub(r"(?<=[\w\"' ])([:=(,]) ?(?=[\"'`])", "\\1\n" + " " * 40, text),
    "continued": lambda text: re.sub(r"(?<=[\w\"' ])([:=(]) ?(?=[\"'`])", "\\1 \\\\\n\t", text),
    "long line": lambda text: "x = [" + "1, " * 4000 + "] " + text + " # " + "y" * 4000,
    "other letters": lambda text: "é" * 3000 + "\n\u0130 naïve_" + text + "\nключ密\U0001f511",
    "notebook": lambda text: json.dumps({"cells": [{"cell_type": "code", "source": text.splitlines(keepends=True)}]}),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"text": text})),
}


class Unfiltered(SearchedText):
    """Takes every part for present, and every long word for a candidate."""

    def __init__(self, text: str, language: str) -> None:
        super().__init__(text, language)
        words = {word for word in BORDER.split(text) if len(word.encode("utf-8", "replace")) >= 16}
        self.candidates = [word.encode("utf-8", "replace").decode() for word in words if len(word) >= 16]
        self.candidates = [word for word in self.candidates if searched_text.is_random_looking(word)]

    def has(self, part: str) -> bool:
        return True

    def found(self, parts: frozenset[str]) -> set[str]:
        return set(parts)


def unfiltered(text: str, language: str, monkeypatch: pytest.MonkeyPatch) -> list[Secret]:
    with monkeypatch.context() as patch:
        patch.setattr("engine.data.secrets.SearchedText", Unfiltered)
        patch.setattr(literals, "_is_quote_near", lambda lower, position: True)
        patch.setattr(names, "present", lambda source: {one.text for one in names.stems() if one.text in source.lower})
        patch.setattr(commands, "_BY_HINT", dict.fromkeys(commands._HINTS, range(len(commands._COMPILED))))
        return find_secrets(text, language)


@pytest.mark.parametrize("shape", SHAPES)
def test_filters_leave_out_nothing(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = random.Random(shape).sample(list(planted(7)), 250)
    found = 0
    for case in cases:
        text = SHAPES[shape](case.text)
        secrets = find_secrets(text, case.language)
        assert secrets == unfiltered(text, case.language, monkeypatch), text
        found += bool(secrets)
    assert found > 50


def test_reach_of_a_look_is_that_of_the_search() -> None:
    longest = "a" * 40 + "}" + "\\" * 8 + '"' + ("x" * 72 + ";s:123456:") * 3 + "x" * 72 + "\n" + " " * 60 + "("
    text = longest + " " * 8 + "rb" + "\\" * 8 + '"'
    assert literals._pattern("").match(text) is not None
    assert max(len(stem.rest) for stem in names.stems()) + len(text) < literals._FURTHEST
