"""Detects loss spikes, from which a run is rolled back (engine.training.recovery)."""

from __future__ import annotations

import statistics

WINDOW = 64
"""Number of latest losses that a new one is compared with."""

_FEWEST = 12
_TO_DEVIATION = 1.4826  # of normally distributed values: standard deviation / median absolute deviation
_LEAST_SPREAD = 0.05


class SpikeDetector:
    """Compares each update's loss with the median and the median absolute deviation of the latest ones.

    Both are robust to the outliers that they are to find (Hampel 1974). The deviation is at least 5% of the median.
    Late in training losses hardly differ, and a file of another kind is not a spike.

    Args:
        threshold: Robust deviations above the median beyond which a loss is a spike; 0 switches detection off.
        latest: The latest losses, changed in place, so that a resumed run knows those before it. None: there are none.
    """

    def __init__(self, threshold: float, latest: list[float] | None = None) -> None:
        self._threshold = threshold
        self._latest = [] if latest is None else latest

    def deviation(self, loss: float) -> float:
        """Returns the robust deviations of a loss above the median; 0 while too few losses are known."""
        if len(self._latest) < _FEWEST:
            return 0.0
        median = statistics.median(self._latest)
        spread = _TO_DEVIATION * statistics.median(abs(x - median) for x in self._latest)
        return (loss - median) / max(spread, _LEAST_SPREAD * abs(median), 1e-12)

    def is_spike(self, loss: float) -> bool:
        """Tells whether a loss is a spike; adds it to the latest losses if not."""
        if self._threshold and self.deviation(loss) > self._threshold:
            return True
        self._latest.append(loss)
        del self._latest[:-WINDOW]
        return False
