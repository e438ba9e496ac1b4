"""Parsers over long texts that they cannot read: by the square of the length they would take minutes or gigabytes.

`benchmarks/growth.py` measures the time of every parser and of every expression over many more shapes.
"""

from __future__ import annotations

import re
import tracemalloc
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import growth
from engine.data import contents, history
from engine.data.imports import javascript, terraform

SIZE = 600_000
RULES = [(ending, rule) for ending, rules in contents._BY_ENDING.items() for rule, _ in rules]


@pytest.mark.parametrize("unit", ["\n", " \n", "\r\n", "\t", ":=", "pid", "a(\n", "@a ", "<a", "a: "])
@pytest.mark.timeout(60)
def test_the_language_of_a_crafted_file_is_found(unit: str) -> None:
    head = growth.texts(unit, SIZE).encode()
    for ending in contents._BY_ENDING:
        contents.language_by_content(f"a.{ending}", None, head)


@pytest.mark.parametrize("unit", ["ghp_", "a_b.", "a_", "data.a."])
@pytest.mark.timeout(60)
def test_addresses_of_a_crafted_terraform_file_are_found(unit: str) -> None:
    list(terraform.scan(growth.texts(unit, SIZE), PurePosixPath("a/b.tf")))


def test_addresses_of_terraform_are_what_they_were() -> None:
    text = "x = aws_vpc.main.id + a_.b - _a.b + a__b.c-d ab.c a_b. a_b.c var.x local.a_b data.a.b xa_b"
    assert [found[0] for found in terraform._ADDRESS.finditer(text)] == [
        "aws_vpc.main", "a__b.c-d", "a_b.c", "var.x", "local.a_b", "data.a.b",
    ]  # fmt: skip


@pytest.mark.parametrize("unit", ["a", "a-", ".-", "a@", "a@b.", "é"])
@pytest.mark.timeout(60)
def test_addresses_in_a_crafted_message_are_found(unit: str) -> None:
    text = history._ADDRESS.sub("…", growth.texts(unit, SIZE) + " by ann.lee+x@mail.example.org.")
    assert text.endswith("by ….")


@pytest.mark.parametrize("unit", ['"\\', '"', "/*", "//", '"a" '])
@pytest.mark.timeout(60)
def test_comments_of_a_crafted_settings_file_are_found(unit: str) -> None:
    sum(1 for _ in javascript._COMMENTS.finditer(growth.texts(unit, SIZE)))


lines = st.lists(st.sampled_from(["use v6", "(def", ":", ": a", "struct", "\\ ", "a", "VAR", ".section"]), max_size=4)
blanks = st.text(st.sampled_from(" \t\r\n\v"), max_size=4)


@given(lines, st.lists(blanks, min_size=5, max_size=5))
@settings(max_examples=100)
def test_white_space_before_a_word_is_what_it_was(words: list[str], between: list[str]) -> None:
    """As with an expression that looks for it across lines."""
    text = "".join(gap + word for gap, word in zip(between, words, strict=False)).encode()
    for _, rule in RULES:
        across = re.compile(rule.pattern.replace(rb"^[^\S\n]*", rb"^\s*"), re.MULTILINE)
        assert bool(rule.search(text)) == bool(across.search(text)), (rule.pattern, text)


# Slow ones have crafted texts of their own, in their own tests.
_ELSEWHERE = ("secrets", "outline", "resolved", "chat template")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_grows_with_the_text() -> None:
    """Of every parser, for texts of a few shapes: four times the text takes four times the memory, not sixteen."""
    steep = []
    for name, run in growth.parsers().items():
        if name.startswith(_ELSEWHERE):
            continue
        for unit in ("\n", "a ", '{"a":', "[1,", '"', "# a\n", "a: "):
            peaks = []
            for size in (8_000, 8_000, 32_000):  # the first one fills caches
                text = growth.texts(unit, size)
                tracemalloc.start()
                run(text)
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            if peaks[2] > 6 * peaks[1] + 100_000:
                steep.append((name, unit, peaks))
    assert steep == []
