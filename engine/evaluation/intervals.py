"""Confidence intervals: Wilson's for a share; the paired bootstrap for means and for differences of two models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 5
"""Minimum units for an interval; resampling fewer says little about new units."""
_Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
_SEED = 20260101

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Ends of a 95% confidence interval."""

    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """Computes the interval of a share (Wilson 1927), which holds for small numbers and for shares of 0 and 1.

    Raises:
        ValueError: there is no trial.
    """
    if trials < 1:
        raise ValueError("a share of nothing has no interval")
    share, z2 = successes / trials, _Z * _Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Interval(min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def bootstrap(units: int, statistic: Callable[[Floats], Floats]) -> Interval | None:
    """Computes the percentile interval of a statistic (Efron 1979) by resampling whole units; None for too few.

    Units are the independent draws: files for losses, functions for completions. To compare two models on the same
    units, one `statistic` computes both, so that effects of a unit cancel (paired).

    Args:
        units: Number of units.
        statistic: Maps weights, (resamples, units), to its value for each resample, (resamples,).
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
    """Computes the interval of a difference of two shares (Agresti and Min 2005); None for too few.

    Both shares are of the same trials. A bootstrap of a difference that never occurred has width 0. This method adds
    half a trial to each of the four outcomes.

    Args:
        gained: Trials in which only the second succeeded.
        lost: Trials in which only the first succeeded.
        trials: All trials.
    """
    if trials < FEWEST:
        return None
    n, up, down = trials + 2, gained + 0.5, lost + 0.5
    centre, found = (up - down) / n, (gained - lost) / trials
    half = _Z * math.sqrt((up + down) - (up - down) ** 2 / n) / n
    return Interval(min(found, max(-1.0, centre - half)), max(found, min(1.0, centre + half)))


def mean_interval(values: Floats) -> Interval | None:
    """Computes the interval of a mean over units, shape (units,)."""
    return bootstrap(len(values), lambda weights: weights @ values / len(values))
