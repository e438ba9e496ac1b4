"""One spelling of sizes, durations and counts, held by a reader of its own: what is written is read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elite_tui.format import figures
from engine.quantities import counted, format_bytes, format_context, format_parameters, format_seconds

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
TIMES = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86_400, "y": 31_536_000}
CUT_OFF = {"ms": 0.0005, "s": 0.5, "m": 0.5, "h": 60.5, "d": 3600.5, "y": 86_400.5}
"Largest unit → seconds that a text may leave out: less than one of the smaller of its two units."
SHORT = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}
ODD = (
    0,
    1,
    2,
    0.01,
    0.099,
    0.0999,
    9.94,
    9.96,
    59.4,
    59.6,
    60,
    119.9,
    3599.6,
    999.4,
    999.6,
    1023,
    1024,
    1e6,
    1e9,
    1e12,
)


def read_bytes(text):
    number, unit = re.fullmatch(r"(-?[\d,]+(?:\.\d+)?) (B|[KMGTP]iB)", text).groups()
    return float(number.replace(",", "")) * UNITS[unit]


def read_seconds(text):
    assert re.fullmatch(r"\d+ms|\d\.\ds|[\d,]+[smhdy](?: \d+[smhd])?", text), text
    return sum(float(number.replace(",", "")) * TIMES[unit] for number, unit in re.findall(r"([\d.,]+)([a-z]+)", text))


def read_count(text):
    number, unit = re.fullmatch(r"([\d,]+(?:\.\d+)?)([KMB]?)", text).groups()
    return float(number.replace(",", "")) * SHORT[unit]


@given(st.one_of(st.sampled_from(ODD), st.floats(0, 2**59), st.integers(0, 2**59)))
def test_sizes_are_read_back(size):
    text = format_bytes(size)
    assert read_bytes(text) == pytest.approx(size, rel=0.006, abs=0.5)
    assert figures.bytes_in_words(size) == text
    digits = text.split()[0].replace(",", "").replace(".", "").lstrip("0")
    assert len(digits) <= 3 or text.endswith((" B", " PiB")), text


@example(100_000.05)  # A day is followed by hours, of which 59 minutes are more than a sixtieth.
@example(2 * 31_536_000 - 1.0)
@given(st.one_of(st.sampled_from(ODD), st.floats(0, 3e9), st.floats(0, 3e5)))
def test_durations_are_read_back(seconds):
    text = format_seconds(seconds)
    largest = re.findall(r"[a-z]+", text)[0]
    assert read_seconds(text) == pytest.approx(seconds, rel=1e-9, abs=0.051 if "." in text else CUT_OFF[largest])
    assert figures.duration_in_words(seconds) == text
    assert "60" not in re.findall(r"\d+(?=[sm](?:\s|$))", text), text


@given(st.floats(0, 1e9), st.floats(1.0, 3.0))
def test_a_longer_time_is_never_written_as_a_shorter_one(seconds, factor):
    assert read_seconds(format_seconds(seconds)) <= read_seconds(format_seconds(seconds * factor))


@given(st.one_of(st.sampled_from([1, 2, 999, 1000, 12_345, 999_499, 999_500, 13_476_480]), st.integers(1, 10**12)))
def test_parameters_are_read_back(count):
    text = format_parameters(count)
    assert read_count(text) == pytest.approx(count, rel=0.006)
    assert not text.startswith("0."), "a unit that is too large"
    assert figures.parameters_in_words(count) == text


@given(st.integers(1, 2**30))
def test_contexts_are_read_back(tokens):
    number, unit = re.fullmatch(r"([\d,]+)([KM]?)", format_context(tokens)).groups()
    assert int(number.replace(",", "")) * {"": 1, "K": 2**10, "M": 2**20}[unit] == tokens


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "window", "0 windows"),
        (1, "window", "1 window"),
        (2, "file", "2 files"),
        (1_000_000, "row", "1,000,000 rows"),
    ],
)
def test_one_thing_is_no_plural(count, noun, text):
    assert counted(count, noun) == text


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_the_unknown_is_not_zero(unknown):
    assert figures.bytes_in_words(unknown) == figures.duration_in_words(unknown) == "n/a"
