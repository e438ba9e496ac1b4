"""Declares a chart's data: series of points, limits, and marks along the x axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def values(numbers: Iterable[float | None]) -> Values:
    """Converts numbers to an array; None becomes NaN, drawn as a gap. An array of doubles is copied in one step."""
    buffer: Any = numbers
    if getattr(numbers, "typecode", "") == "d":
        return np.array(buffer)
    return np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One named series of points with non-decreasing x. Non-finite y is a gap that no line bridges."""

    name: str
    x: Values
    y: Values
    style: str = "$primary"
    marker: str = ""
    "One character drawn at each point; empty draws a line."
    letter: str = ""
    "One character drawn on the line at intervals, to tell lines apart without colour."
    quiet: bool = False
    "Whether to leave it out of the legend, such as the raw values beneath a smoothed line."

    @property
    def latest(self) -> float | None:
        """The last finite value."""
        known = np.flatnonzero(np.isfinite(self.y))
        return float(self.y[known[-1]]) if known.size else None

    def at(self, x: float) -> float | None:
        """Returns the value at the last point not after x; None before the first point and in a gap."""
        index = int(np.searchsorted(self.x, x, side="right")) - 1
        found = float(self.y[index]) if index >= 0 else np.nan
        return found if np.isfinite(found) else None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A level drawn across the plot, such as the planned memory."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An event, drawn as a sign on the x axis."""

    x: float
    sign: str
    style: str = "$accent"
