"""Formatting of figures."""

from __future__ import annotations

import math

import pytest

from elite_tui.format.figures import (
    bytes_in_words,
    bytes_of_total,
    context_in_words,
    count_in_words,
    duration_in_words,
    number_in_words,
    percent_in_words,
    printable,
)
from elite_tui.format.layout import bar, history_line

GIB = 1024**3


@pytest.mark.parametrize(
    "words", [bytes_in_words, duration_in_words, count_in_words, number_in_words, percent_in_words]
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_unknown_is_never_zero(words, value):
    assert words(value) == "n/a"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (7.31 * GIB, "7.31 GiB"),
        (12 * GIB, "12.0 GiB"),
        (400 * GIB, "400 GiB"),
    ],
)
def test_bytes(count, words):
    assert bytes_in_words(count) == words


def test_bytes_of_total():
    assert bytes_of_total(7 * GIB, 12 * GIB) == "7.00/12.0 GiB"
    assert bytes_of_total(None, 12 * GIB) == "n/a/12.0 GiB"
    assert bytes_of_total(None, None) == "n/a"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (0.04, "40ms"),
        (0.0999, "0.1s"),
        (9.96, "10s"),
        (9.5, "9.5s"),
        (59.6, "1m"),
        (130, "2m 10s"),
        (3600, "1h"),
        (90_000, "1d 1h"),
        (2_764_800, "32d"),
    ],
)
def test_durations(seconds, words):
    assert duration_in_words(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (9_999, "9,999"), (10_000, "10.0K"), (521_904, "522K"), (999_900, "1.00M"), (2.5e13, "25.0T")],
)
def test_counts(count, words):
    assert count_in_words(count) == words


@pytest.mark.parametrize(("tokens", "words"), [(4096, "4K"), (1 << 20, "1M"), (128, "128"), (5000, "5,000")])
def test_contexts(tokens, words):
    assert context_in_words(tokens) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0.0000"[:5]), (1.96512, "1.965"), (60.34, "60.34"), (8879.3, "8,879"), (1.5e-6, "1.5e-06")],
)
def test_numbers(value, words):
    assert number_in_words(value) == words


def test_bars():
    assert bar(None, 4) == "┄┄┄┄"
    assert bar(0.0, 4) == "    "
    assert bar(0.5, 4) == "██  "
    assert bar(7.0, 4) == "████"
    assert len(bar(0.33, 10)) == 10


def test_history_keeps_the_newest_and_leaves_gaps():
    assert history_line([0.0, None, 1.0], 5) == "  ▁ █"
    assert history_line([0.0] * 50 + [1.0], 3) == "▁▁█"


def test_untrusted_text_has_no_escapes():
    assert printable("a\tb\x1b[31m\nc\u202e") == "a b\\x1b[31m\\nc\\u202e"
