"""Reduces each four neighbouring rows of a column to two."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

GROUP = 4
"""Neighbouring rows that become two."""


def ends(column: array[float]) -> array[float]:
    """Keeps the first and the last row of each group."""
    return _joined(_groups(column)[:, [0, -1]])


def half_sums(column: array[float]) -> array[float]:
    """Returns half of each group's sum, twice."""
    return _twice(_groups(column).sum(axis=1) / 2)


def means(column: array[float], weights: array[float]) -> array[float]:
    """Returns each group's weighted mean without its missing values, twice; NaN where all are missing."""
    groups = _groups(column)
    known = np.isfinite(groups)
    shares = np.where(known, _groups(weights), 0.0)
    total = shares.sum(axis=1)
    sums = (np.where(known, groups, 0.0) * shares).sum(axis=1)
    return _twice(np.divide(sums, total, out=np.full(total.shape, np.nan), where=total > 0))


def extremes(column: array[float]) -> array[float]:
    """Returns each group's lowest and highest value, the earlier one first; NaN where all are missing."""
    groups = _groups(column)
    known = np.isfinite(groups)
    low = np.where(known, groups, np.inf).argmin(axis=1)
    high = np.where(known, groups, -np.inf).argmax(axis=1)
    rows = np.arange(len(groups))
    return _joined(np.stack((groups[rows, np.minimum(low, high)], groups[rows, np.maximum(low, high)]), axis=1))


def _groups(column: array[float]) -> Values:
    return np.array(column).reshape(-1, GROUP)


def _twice(values: Values) -> array[float]:
    return _joined(np.repeat(values, 2))


def _joined(values: Values) -> array[float]:
    return array("d", values.astype(np.float64).ravel().tobytes())
