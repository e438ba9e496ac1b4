"""Formats figures for the app: bytes, durations, counts and shares.

None is always "n/a", never 0.
"""

from __future__ import annotations

import math

from engine.quantities import GIB, format_bytes, format_context, format_parameters, format_seconds

NOT_AVAILABLE = "n/a"

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_in_words(count: float | None) -> str:
    """Formats bytes in binary units with three significant digits: 7.31 GiB."""
    if count is None or not math.isfinite(count):
        return NOT_AVAILABLE
    return format_bytes(count)


def bytes_of_total(used: float | None, total: float | None) -> str:
    """Formats two byte counts in the unit of the larger: 7.00/12.0 GiB."""
    if used is None or total is None or not (math.isfinite(used) and math.isfinite(total)):
        return NOT_AVAILABLE if used is None and total is None else f"{bytes_in_words(used)}/{bytes_in_words(total)}"
    whole, unit = bytes_in_words(total).split(" ")
    value = used / 1024 ** _UNITS.index(unit)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}/{whole} {unit}"


def signed_bytes(count: int | None) -> str:
    """Formats a change of memory: −1.25 GiB; empty if zero or unknown."""
    if not count:
        return ""
    return ("−" if count < 0 else "+") + bytes_in_words(abs(count))


def size_or_dash(count: int) -> str:
    """Formats bytes, zero as a dash."""
    return bytes_in_words(count) if count else "-"


def whole_gibibytes(count: float) -> str:
    """Formats a size as sold: 24 GiB."""
    return f"{count / GIB:.0f} GiB"


def gibibytes(size: float | None) -> str:
    """Formats a number of GiB with its significant digits."""
    return number_in_words(size, 3)


def duration_in_words(seconds: float | None) -> str:
    """Formats a duration with its two largest units: 2m 10s."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_AVAILABLE
    return format_seconds(max(0.0, seconds))


def signed_duration(seconds: float | None) -> str:
    """Formats a change of time: −2m 10s; empty if zero or unknown."""
    if not seconds:
        return ""
    return ("−" if seconds < 0 else "+") + duration_in_words(abs(seconds))


def count_in_words(count: float | None) -> str:
    """Formats a count with three significant digits and K, M or G: 1.24M. Below ten thousand it is written out."""
    if count is None or not math.isfinite(count):
        return NOT_AVAILABLE
    if abs(count) < 10_000:
        return f"{count:,.0f}"
    value = float(count)
    for suffix in "KMGT":
        value /= 1000
        if abs(value) < 999.5 or suffix == "T":
            break
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{suffix}"


def parameters_in_words(count: int) -> str:
    """Formats a parameter count: 1.54B, 494M."""
    return format_parameters(count)


def context_in_words(tokens: int) -> str:
    """Formats a context length in binary thousands: 128K, 1M; other lengths are written out."""
    return format_context(tokens) if tokens else "0"  # zero is a multiple of every unit


def number_in_words(value: float | None, digits: int = 4) -> str:
    """Formats a measured value with `digits` significant digits."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.{max(digits - 3, 0)}e}"
    whole_digits = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(digits - max(whole_digits, 1), 0)}f}"


def rate_in_words(rate: float | None) -> str:
    """Formats a learning rate: 2.00e-04."""
    return NOT_AVAILABLE if rate is None else f"{rate:.2e}"


def share_of(used: float | None, total: float | None) -> float | None:
    """Returns used over total, or None if either is unknown."""
    return used / total if used is not None and total else None


def percent_in_words(share: float | None) -> str:
    """Formats a share of 1 as a percentage: 31%."""
    if share is None or not math.isfinite(share):
        return NOT_AVAILABLE
    return f"{100 * share:.0f}%"


def printable(text: str) -> str:
    """Makes untrusted text safe to draw by escaping control characters and replacing tabs with spaces."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else " " if c == "\t" else c.encode("unicode_escape").decode("ascii") for c in text
    )
