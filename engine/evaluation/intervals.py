"""Confidence intervals: Wilson's for a share, the paired bootstrap for means and for the difference of two models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 5
"""Units that an interval needs: of fewer, resampling shows little of what others would be like."""
_Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
_SEED = 20260101

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Ends of an interval of 95% confidence."""

    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """Interval of a share (Wilson 1927): right for small numbers, and for shares of 0 and 1.

    Raises:
        ValueError: no trial.
    """
    if trials < 1:
        raise ValueError("a share of nothing has no interval")
    share, z2 = successes / trials, _Z * _Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Interval(min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def bootstrap(units: int, statistic: Callable[[Floats], Floats]) -> Interval | None:
    """Percentile interval of a statistic (Efron 1979), resampling whole units; None for too few.

    Units are what is drawn independently: files for losses, functions for completions. Two models that are scored on
    the same units are compared in one `statistic`, so that what a unit has of its own cancels out (paired).

    Args:
        units: How many there are.
        statistic: From weights, (resamples, units), to its value for each resample, (resamples,).
    """
    if units < FEWEST:
        return None
    weights = np.random.default_rng(_SEED).multinomial(units, np.full(units, 1 / units), RESAMPLES)
    found = statistic(weights.astype(np.float64))
    found = found[np.isfinite(found)]
    if not found.size:
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def paired_shares(gained: int, lost: int, trials: int) -> Interval | None:
    """Interval of the difference of two shares on the same trials (Agresti and Min 2005); None for too few.

    The bootstrap of a difference that never occurred says that it never will; half a trial added to each of the four
    outcomes does not.

    Args:
        gained: Trials in which only the second succeeded.
        lost: Trials in which only the first did.
        trials: All.
    """
    if trials < FEWEST:
        return None
    n, up, down = trials + 2, gained + 0.5, lost + 0.5
    centre, found = (up - down) / n, (gained - lost) / trials
    half = _Z * math.sqrt((up + down) - (up - down) ** 2 / n) / n
    return Interval(min(found, max(-1.0, centre - half)), max(found, min(1.0, centre + half)))


def mean_interval(values: Floats) -> Interval | None:
    """Interval of a mean over units."""
    return bootstrap(len(values), lambda weights: weights @ values / len(values))
