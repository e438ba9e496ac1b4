"""What a chart draws: sequences of points, levels that must not be passed, and events along the x axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def values(numbers: Iterable[float | None]) -> Values:
    """Numbers as an array; None becomes NaN, which is drawn as a gap. An array of doubles is copied at once."""
    buffer: Any = numbers
    if getattr(numbers, "typecode", "") == "d":
        return np.array(buffer)
    return np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One named sequence of points, x never falling. What is not finite in y is a gap that no line bridges."""

    name: str
    x: Values
    y: Values
    style: str = "$primary"
    marker: str = ""
    "One character drawn at each point; empty draws a line."
    letter: str = ""
    "One character set on the line here and there, so that lines are told apart without colour."
    quiet: bool = False
    "Not in the legend: the raw values beneath a smoothed line."

    @property
    def latest(self) -> float | None:
        """The last value that there is."""
        known = np.flatnonzero(np.isfinite(self.y))
        return float(self.y[known[-1]]) if known.size else None

    def at(self, x: float) -> float | None:
        """The value at the last point that is not after x; None before the first, and in a gap."""
        index = int(np.searchsorted(self.x, x, side="right")) - 1
        found = float(self.y[index]) if index >= 0 else np.nan
        return found if np.isfinite(found) else None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A level drawn across the plot, such as the memory that a plan foresees."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened, shown by a sign on the x axis."""

    x: float
    sign: str
    style: str = "$accent"
