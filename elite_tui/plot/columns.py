"""Downsamples a curve to one entry per column of dots and keeps all peaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elite_tui.plot.series import Values


@dataclass(frozen=True)
class Column:
    """The points of an unbroken stretch that share one column of dots."""

    x: int
    first: float
    last: float
    low: float
    high: float
    joined: bool
    "Whether a line leads here from the previous column."


def in_window(x: Values, y: Values, left: float, right: float) -> tuple[Values, Values]:
    """Clips a curve to a window and interpolates points on its edges."""
    start, end = int(np.searchsorted(x, left, side="left")), int(np.searchsorted(x, right, side="right"))
    inner_x, inner_y = x[start:end], y[start:end]
    if 0 < start < x.size and (start == end or x[start] > left):
        crossing = _between(x, y, start, left)
        inner_x, inner_y = np.append(left, inner_x), np.append(crossing, inner_y)
    if 0 < end < x.size:
        crossing = _between(x, y, end, right)
        inner_x, inner_y = np.append(inner_x, right), np.append(inner_y, crossing)
    return inner_x, inner_y


def _between(x: Values, y: Values, after: int, place: float) -> float:
    width = float(x[after] - x[after - 1])
    share = (place - float(x[after - 1])) / width if width > 0 else 0.0
    # Python floats, not numpy's: for them inf - inf is NaN without a warning.
    before, behind = float(y[after - 1]), float(y[after])
    return before + share * (behind - before)


def reduce_to_columns(x: Values, y: Values, left: float, right: float, columns: int) -> list[Column]:
    """Reduces a line to its extent in each column of dots.

    Args:
        x: Non-decreasing, between `left` and `right`.
        y: Of the same length; non-finite values leave a gap.
        left, right: Edges of the first and the last column.
        columns: Number of columns.
    """
    known = np.isfinite(y)
    if not known.any():
        return []
    stretch = np.cumsum(~known)[known]
    x, y = x[known], y[known]
    span = right - left
    place = np.zeros(x.size, dtype=np.int64)
    if span > 0:
        place = np.clip(np.rint((x - left) / span * (columns - 1)), 0, columns - 1).astype(np.int64)
    new = np.append(True, (np.diff(place) != 0) | (np.diff(stretch) != 0))
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], x.size) - 1
    joined = np.append(False, np.diff(stretch[starts]) == 0)
    lows, highs = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    fields = (place[starts], y[starts], y[ends], lows, highs, joined)
    return [Column(*row) for row in zip(*(array.tolist() for array in fields), strict=True)]
