"""Formats bytes, counts and durations, the same in every table and message."""

from __future__ import annotations

GIB = 1024**3


def format_bytes(count: float) -> str:
    """Formats in binary units with one decimal: "6.7 GiB", "512.0 MiB"."""
    for unit, size in (("TiB", 1024**4), ("GiB", GIB), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Formats in one unit: 0.4 s, 12 s, 3 min, 5.6 h, 10 h, 2.1 days."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h".replace(".0 h", " h")
    return f"{seconds / 86400:.1f} days"


def format_parameters(count: int) -> str:
    """Formats a parameter count with three significant digits: 1.54B, 494M, 9.03M."""
    size, unit = (1e9, "B") if count >= 999.5e6 else (1e6, "M")
    value = count / size
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}{unit}"


def format_context(tokens: int) -> str:
    """Formats tokens, in binary units where they are round: 512K, 1M, 4,000."""
    if tokens % 1024**2 == 0:
        return f"{tokens // 1024**2}M"
    if tokens % 1024 == 0:
        return f"{tokens // 1024}K"
    return f"{tokens:,}"
