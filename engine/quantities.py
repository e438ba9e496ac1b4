"""Formats bytes, counts and durations, the same in every table, message, report and screen."""

from __future__ import annotations

from itertools import pairwise

GIB = 1024**3
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIMES = (("y", 31_536_000), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def format_bytes(count: float) -> str:
    """Formats in binary units with three significant digits: 7.31 GiB, 12.0 GiB, 512 MiB, 80 B."""
    value = float(count)
    unit = _UNITS[0]
    for unit in _UNITS:
        # Beyond it, three digits would be rounded to four.
        if abs(value) < (999.5 if unit != "B" else 1000) or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"


def format_seconds(seconds: float) -> str:
    """Formats with the two largest units, or with one decimal below ten seconds: 2m 10s, 5h 36m, 12s, 0.4s, 48ms."""
    if seconds < 0.0995:
        return f"{max(0, round(seconds * 1000))}ms" if seconds >= 0.0005 else "0s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for (unit, size), (small_unit, small_size) in pairwise(_TIMES):
        if whole >= size:
            small = whole % size // small_size
            return f"{whole // size:,}{unit} {small}{small_unit}" if small else f"{whole // size:,}{unit}"
    return f"{whole}s"


def format_timing(seconds: float) -> str:
    """Formats a measurement with three significant digits below a minute: 48.2ms, 430ms, 1.23s, 51.2s, 2m 10s."""
    if seconds >= 59.95:
        return format_seconds(seconds)
    return f"{_three_digits(seconds)}s" if seconds >= 0.9995 else f"{_three_digits(1000 * max(0.0, seconds))}ms"


def _three_digits(value: float) -> str:
    return f"{value:,.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2}f}"


def counted(count: int, noun: str) -> str:
    """Formats a whole number of things: 1 file, 1,204 files."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_parameters(count: int) -> str:
    """Formats a parameter count with three significant digits: 1.54B, 494M, 9.03M, 12.3K, 420."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size * 0.9995:
            return f"{_three_digits(count / size)}{unit}"
    return f"{count:,}"


def format_context(tokens: int) -> str:
    """Formats tokens, in binary units where they are round: 512K, 1M, 4,000."""
    if tokens % 1024**2 == 0:
        return f"{tokens // 1024**2}M"
    if tokens % 1024 == 0:
        return f"{tokens // 1024}K"
    return f"{tokens:,}"
