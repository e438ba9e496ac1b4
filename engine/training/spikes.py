"""Notices a loss that breaks out of its own recent past."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 64
"""Latest losses that a new one is compared with."""

_FEWEST = 12
_TO_DEVIATION = 1.4826  # of normally distributed values: standard deviation / median absolute deviation
_LEAST_SPREAD = 0.05


class SpikeDetector:
    """Compares each update's loss with the median and the median absolute deviation of the latest ones.

    Both ignore the outliers that they are to find (Hampel 1974). The deviation is taken as at least 5% of the
    median: late in training losses hardly differ, and a file of another kind is no spike.

    Args:
        threshold: Robust deviations above the median from which on a loss is a spike; 0 for never.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._latest: deque[float] = deque(maxlen=WINDOW)

    def deviation(self, loss: float) -> float:
        """Robust deviations of a loss above the median; 0 while too few losses are known."""
        if len(self._latest) < _FEWEST:
            return 0.0
        median = statistics.median(self._latest)
        spread = _TO_DEVIATION * statistics.median(abs(x - median) for x in self._latest)
        return (loss - median) / max(spread, _LEAST_SPREAD * abs(median), 1e-12)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss breaks out; one that does not is remembered."""
        if self._threshold and self.deviation(loss) > self._threshold:
            return True
        self._latest.append(loss)
        return False
