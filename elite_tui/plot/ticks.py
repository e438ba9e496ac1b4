"""Computes round tick positions along an axis, and their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from elite_tui.format.figures import count_in_words, duration_in_words

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_SECONDS = (
    *(1, 2, 5, 10, 15, 30),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 5, 10, 20, 50, 100)),
)

Labels = list[tuple[float, str]]
"""Positions along an axis and their labels, in rising order."""


def linear(low: float, high: float, most: int) -> Labels:
    """Returns at most `most` multiples of 1, 2 or 5 times a power of ten, with as many decimals as they need."""
    step = _round_step((high - low) / max(1, most), most, low, high)
    places = _multiples(low, high, step)
    largest = max((abs(place) for place in places), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-2:
        return [(place, f"{place:.1e}" if place else "0") for place in places]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(place, f"{place:,.{decimals}f}") for place in places]


def counts(low: float, high: float, most: int) -> Labels:
    """Like `linear`, for steps and tokens: whole numbers, large ones with a suffix."""
    step = max(1.0, _round_step((high - low) / max(1, most), most, low, high))
    return [(place, count_in_words(place)) for place in _multiples(low, high, step)]


def seconds(low: float, high: float, most: int) -> Labels:
    """Returns durations at round multiples."""
    step = next((size for size in _SECONDS if (high - low) / size <= most), _SECONDS[-1])
    return [(place, duration_in_words(place) if place else "0") for place in _multiples(low, high, float(step))]


def logarithmic(low: float, high: float, most: int) -> Labels:
    """Returns powers of ten between two positive numbers, with 2 and 5 times them if they fit.

    A narrow range gets even steps.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1,)):
        places = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        inside = [place for place in places if low * (1 - 1e-9) <= place <= high * (1 + 1e-9)]
        if len(inside) < 2:
            # Below a factor of two, even steps serve as well.
            return linear(low, high, most)
        if len(inside) <= most:
            return [(place, _plain(place)) for place in inside]
    every = -(-len(inside) // max(1, most))
    return [(place, _plain(place)) for place in inside[::every]]


def labeller(kind: str) -> Callable[[float, float, int], Labels]:
    """Returns the tick function of an x axis of steps, tokens or time."""
    return seconds if kind == "time" else counts


def place_in_words(kind: str, place: float) -> str:
    """Formats one position on an x axis of a kind."""
    if kind == "time":
        return duration_in_words(place)
    return f"{round(place):,}" if kind == "step" else count_in_words(place)


def _plain(value: float) -> str:
    return f"{value:.0e}" if value >= 1e6 or value < 1e-2 else f"{value:g}"


def _round_step(rough: float, most: int, low: float, high: float) -> float:
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        if len(_multiples(low, high, step)) <= most:
            return step
    return 50 * power


def _multiples(low: float, high: float, step: float) -> Sequence[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
