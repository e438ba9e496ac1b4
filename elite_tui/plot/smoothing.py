"""Exponential smoothing of a curve, as training dashboards show it."""

from __future__ import annotations

import numpy as np

from elite_tui.plot.series import Values

WEIGHTS = (0.0, 0.6, 0.9, 0.97, 0.99)
"""Choices for the weight of the past at each step. 0.9 looks back about ten steps, 0.99 a hundred."""


class Smoother:
    """The moving average m ← w·m + (1−w)·y, divided by 1−wⁿ so that the first points are not pulled to 0.

    Missing values stay missing and do not move the average (the correction is that of Adam, arXiv:1412.6980).
    Only the new points are computed if the curve grew since the last call.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._source: Values = np.empty(0)
        self._smoothed: Values = np.empty(0)
        self._mean, self._past = 0.0, 1.0

    def __call__(self, y: Values, weight: float) -> Values:
        """Returns the smoothed curve, of the same length; y itself for weight 0."""
        if weight <= 0.0:
            return y
        known = self._source.size
        if weight != self._weight or y.size < known or not np.array_equal(y[:known], self._source, equal_nan=True):
            self._weight, known = weight, 0
            self._smoothed = np.empty(0)
            self._mean, self._past = 0.0, 1.0
        fresh = np.full(y.size - known, np.nan)
        for index, value in enumerate(y[known:].tolist()):
            if np.isfinite(value):
                self._mean = weight * self._mean + (1.0 - weight) * value
                self._past *= weight
                fresh[index] = self._mean / (1.0 - self._past)
        self._source = y
        self._smoothed = np.concatenate((self._smoothed, fresh))
        return self._smoothed
