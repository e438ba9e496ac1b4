"""Exponential smoothing of a curve, as training dashboards show it."""

from __future__ import annotations

import numpy as np

from elite_tui.plot.series import Values

WEIGHTS = (0.0, 0.6, 0.9, 0.97, 0.99)
"""Choices for the weight of the past at each step. 0.9 looks back about ten steps, 0.99 a hundred."""

_BLOCK = 64


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

    def __call__(self, y: Values, weight: float, rows: Values | None = None) -> Values:
        """Returns the smoothed curve, of the same length; y itself for weight 0.

        Args:
            y: The curve.
            weight: Weight of the past at each step.
            rows: How many steps each point is the mean of; None for one each.
        """
        if weight <= 0.0:
            return y
        known = self._source.size
        if weight != self._weight or y.size < known or not np.array_equal(y[:known], self._source, equal_nan=True):
            self._weight, known = weight, 0
            self._smoothed = np.empty(0)
            self._mean, self._past = 0.0, 1.0
        fresh = y[known:].copy()
        finite = np.isfinite(fresh)
        fresh[~finite] = np.nan
        steps = np.ones(fresh.size) if rows is None else rows[known:]
        ends = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), fresh.size]
        for start, end in zip([0, *ends], ends, strict=False):
            # A long run's early points stand for ever more steps, in few stretches.
            if start < end:
                part, here = fresh[start:end], finite[start:end]
                part[here] = self._averages(part[here], weight ** float(steps[start]))
        self._source = y
        self._smoothed = np.concatenate((self._smoothed, fresh))
        return self._smoothed

    def _averages(self, values: Values, weight: float) -> Values:
        """Continues the average over finite values, block by block: a long run has a million of them."""
        if not values.size:
            return values
        back = np.arange(_BLOCK)
        kernel = (1.0 - weight) * np.tril(weight ** np.maximum(0, back[:, None] - back[None, :]))
        blocks = np.zeros((-(-values.size // _BLOCK), _BLOCK))
        blocks.ravel()[: values.size] = values
        means = blocks @ kernel.T
        carried = [self._mean]
        for last in means[:-1, -1].tolist():
            carried.append(last + carried[-1] * weight**_BLOCK)
        means += np.array(carried)[:, None] * weight ** (back + 1.0)
        found: Values = means.ravel()[: values.size]
        past = self._past * weight ** np.arange(1.0, values.size + 1.0)
        self._mean, self._past = float(found[-1]), float(past[-1])
        return found / (1.0 - past)
