"""Projects a held-out loss by a power law through the scores so far, with an interval, and scores it later.

    L(t) = a + b·t^-c        a ≥ 0, b ≥ 0        (Hestness et al., arXiv 1712.00409)

with t in tokens trained on. For each c the law is linear in a and b, so with Gaussian errors of unknown size their
posterior is a Student t in closed form; c is summed over a grid. Results of past runs of the same model are a prior on
the final loss as a share of the initial one. Draws from all that, without impossible ones, give median and interval of
the next score at t. It is a projection, not a promise: the law ignores a schedule that lowers the rate towards the end,
and data that change on the way. numpy only, since the monitor uses it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.8
"""Coverage of the interval: four of five scores should fall into it."""
FEWEST = 4
"""Minimum scores after the start: the law has three parameters."""
FEWEST_RUNS = 2
"""Minimum past runs for a prior."""

_EXPONENTS = np.geomspace(0.05, 2.5, 120)
_LIKELY_EXPONENT, _EXPONENT_SPREAD = 0.4, 0.8
"""Log-normal prior on c (median, width of log c); measured exponents of language models are 0.05 to 0.7."""
_DRAWS = 8000
_EARLIEST = 1e-4
"""Scores before this share of the progress so far count as the start, since the law has a pole at 0."""
_SMALLEST_ERROR = 1e-3
"""Smallest standard error, in nats; a score on other tokens would differ by more."""
_SEED = 20260101

Floats = npt.NDArray[np.float64]
Point = tuple[float, float]
"""Tokens trained on, and held-out loss in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Projected loss with its interval."""

    tokens: float
    "Tokens trained on at that point."
    loss: float
    "Median loss."
    low: float
    high: float
    "Upper end of the interval."
    points: int
    "Number of scores that the law was fitted to, besides the one at the start."
    runs: int
    "Number of past runs in the prior."


@dataclass(frozen=True, kw_only=True)
class Score:
    """A projection compared with the actual score."""

    projection: Projection
    happened: float

    @property
    def inside(self) -> bool:
        """Whether the actual score lies in the interval."""
        return self.projection.low <= self.happened <= self.projection.high

    @property
    def error(self) -> float:
        """Projected median minus the actual score, in nats."""
        return self.projection.loss - self.happened


def project(curve: Sequence[Point], tokens: float, past: Sequence[float] = ()) -> Projection | None:
    """Projects the loss after `tokens` tokens; None where there is too little data.

    Args:
        curve: The scores so far, ascending in tokens; one at 0 is the base model's.
        tokens: Tokens to project to.
        past: Last over first loss of each finished run of the same model.
    """
    known = [(t, loss) for t, loss in curve if np.isfinite(loss)]
    start = next((loss for t, loss in known if t <= 0), None)
    newest = known[-1][0] if known else 0.0
    later = [(t, loss) for t, loss in known if t > _EARLIEST * newest]
    ratios = np.array([ratio for ratio in past if 0 < ratio < 10], dtype=np.float64)
    has_prior = start is not None and len(ratios) >= FEWEST_RUNS
    if tokens <= 0 or (len(later) < FEWEST and not has_prior):
        return None
    random = np.random.default_rng(_SEED)
    weights = None
    if len(later) >= FEWEST:
        draws = _drawn_from_curve(np.array(later), tokens, random)
        if draws is None:
            return None
        if has_prior:
            assert start is not None
            weights = np.exp(_log_prior(np.log(draws / start), np.log(ratios)))
    else:
        assert start is not None
        draws = start * np.exp(_drawn_from_runs(np.log(ratios), random))
    low, middle, high = _quantiles(draws, weights, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Projection(
        tokens=tokens,
        loss=middle,
        low=low,
        high=high,
        points=len(later) if len(later) >= FEWEST else 0,
        runs=len(ratios) if has_prior else 0,
    )


def score_in_hindsight(
    curve: Sequence[Point], past: Sequence[float] = (), shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75)
) -> list[Score]:
    """Repeats the projections of the last score at some shares of the run, each from the scores known by then."""
    if len(curve) < 2:
        return []
    end, happened = curve[-1]
    found = []
    for share in shares:
        known = [point for point in curve[:-1] if point[0] <= share * end]
        projected = project(known, end, past)
        if projected is not None:
            found.append(Score(projection=projected, happened=happened))
    return found


def _drawn_from_curve(points: Floats, tokens: float, random: np.random.Generator) -> Floats | None:
    """Draws possible scores at `tokens`. Shape (draws,); None where no law fits."""
    t, y = points[:, 0], points[:, 1]
    scale, n = t[-1], len(y)
    log_evidence = np.empty(len(_EXPONENTS))
    fits = []
    for index, c in enumerate(_EXPONENTS):
        x = np.stack([np.ones(n), (t / scale) ** -c], axis=1)
        inverse = np.linalg.inv(x.T @ x + 1e-12 * np.eye(2))
        beta = inverse @ x.T @ y
        freedom = n - 2
        variance = max(float(((y - x @ beta) ** 2).sum()) / freedom, _SMALLEST_ERROR**2)
        fits.append((beta, inverse, variance))
        # Flat in a, b and log sigma: p(y | c) is |X'X|^-1/2 times the residual sum to the power of -freedom / 2.
        prior = -0.5 * (np.log(c / _LIKELY_EXPONENT) / _EXPONENT_SPREAD) ** 2
        log_evidence[index] = 0.5 * np.log(np.linalg.det(inverse)) - freedom / 2 * np.log(variance) + prior
    chances = np.exp(log_evidence - log_evidence.max())
    chosen = random.choice(len(_EXPONENTS), _DRAWS, p=chances / chances.sum())
    found = []
    for index in np.unique(chosen):
        beta, inverse, variance = fits[index]
        count = int((chosen == index).sum())
        sigma = np.sqrt(variance * (n - 2) / random.chisquare(n - 2, count))
        drawn = beta + sigma[:, None] * (random.standard_normal((count, 2)) @ np.linalg.cholesky(inverse).T)
        possible = (drawn >= 0).all(1)
        at_end = drawn[:, 0] + drawn[:, 1] * (tokens / scale) ** -_EXPONENTS[index]
        found.append((at_end + sigma * random.standard_normal(count))[possible])
    draws = np.concatenate(found)
    draws = draws[draws > 0]
    return draws if len(draws) >= 50 else None


def _spread(logs: Floats) -> tuple[float, float]:
    """Returns centre and width of another run's result; a few runs are a rough guide, which widens it."""
    deviation = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    return float(logs.mean()), max(deviation, 0.05) * float(np.sqrt(1 + 1 / len(logs)))


def _log_prior(values: Floats, logs: Floats) -> Floats:
    centre, width = _spread(logs)
    freedom = max(1, len(logs) - 1)
    density: Floats = -(freedom + 1) / 2 * np.log1p(((values - centre) / width) ** 2 / freedom)
    return density


def _drawn_from_runs(logs: Floats, random: np.random.Generator) -> Floats:
    centre, width = _spread(logs)
    drawn: Floats = centre + width * random.standard_t(max(1, len(logs) - 1), _DRAWS)
    return np.clip(drawn, -5.0, 5.0)


def _quantiles(values: Floats, weights: Floats | None, shares: Sequence[float]) -> list[float]:
    if weights is None or not weights.sum() > 0:
        return [float(q) for q in np.quantile(values, shares)]
    order = np.argsort(values)
    cumulated = np.cumsum(weights[order])
    places = np.searchsorted(cumulated, np.array(shares) * cumulated[-1])
    return [float(values[order][min(place, len(values) - 1)]) for place in places]
