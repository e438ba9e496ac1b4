"""Converters of option values for argparse. Their messages name the values that an option takes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from engine.quantities import GIB


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Returns a converter to a whole number in least..most."""
    allowed = f"at least {least:,}" if most is None else f"from {least:,} to {most:,}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number {allowed}")
        return value

    return convert


def number(*, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """Returns a converter to a finite number above `above`, at least `least`, and at most `most`."""
    allowed = (f"at least {least:,}" if math.isinf(above) else f"above {above:,}") + (
        "" if math.isinf(most) else f" and at most {most:,}"
    )

    def convert(text: str) -> float:
        value = _float(text)
        if not (above < value <= most and value >= least and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} is not a number {allowed}")
        return value

    return convert


def seconds(most: float = math.inf) -> Callable[[str], float]:
    """Returns a converter to a finite number of seconds from 0 to most."""

    def convert(text: str) -> float:
        value = _float(text)
        if not (0 <= value <= most and math.isfinite(value)):
            allowed = "a number of seconds at least 0" if math.isinf(most) else f"0 to {most:.0f} seconds"
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return convert


def gib_in_bytes(text: str) -> int:
    """Converts a size in GiB to bytes."""
    value = _float(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a size in GiB, such as 8 or 23.5")
    return round(value * GIB)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
