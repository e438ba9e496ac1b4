from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.licences import find_header, fingerprint

MIT = "Copyright (c) 2020 Somebody\nPermission is hereby granted, free of charge, to any person"
HASHES = "".join(f"# {line}\n" for line in MIT.split("\n"))
STARS = "/*\n" + "".join(f" * {line}\n" for line in MIT.split("\n")) + " */\n"


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (HASHES + "\nimport os\n", HASHES + "\n"),
        ("#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n" + HASHES + "\n\nimport os\n", HASHES + "\n\n"),
        (STARS + "int x;\n", STARS),
        ("\n\n" + STARS + "int x;\n", STARS),
        (HASHES.replace("#", "//") + "package a\n", HASHES.replace("#", "//")),
        ("# just a comment about the code below, which is long enough\nimport os\n", None),
        ("# (c) me\nx\n", None),
        ("import os\n" + HASHES, None),
        ("", None),
    ],
)
def test_the_comment_at_the_top_that_speaks_of_rights(text: str, header: str | None) -> None:
    found = find_header(text)
    assert (text[found[0] : found[1]] if found else None) == header


def test_years_signs_and_line_breaks_make_no_difference() -> None:
    again = STARS.replace("2020", "1999").replace("granted, free", "granted,\n * free")
    assert fingerprint(HASHES) == fingerprint(STARS) == fingerprint(again)
    assert fingerprint(HASHES) != fingerprint(HASHES.replace("Somebody", "Another"))


@given(st.text(st.sampled_from("#/* \n-cCopyright©ü;%'\"<!>"), max_size=200))
def test_any_text(text: str) -> None:
    found = find_header(text)
    if found:
        assert 0 <= found[0] < found[1] <= len(text)
