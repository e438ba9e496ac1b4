"""Where a held-out loss is heading: a power law through the scores so far, with an interval, and its later score.

    L(t) = a + b·t^-c        a ≥ 0, b ≥ 0        (Hestness et al., arXiv 1712.00409)

with t in tokens trained on. For each c the law is linear in a and b, so that with Gaussian errors of unknown size their
posterior is a Student t in closed form; c is summed over a grid. What past runs of the same model came to is a prior on
the loss at the end as a share of the loss at the start. Draws from all that, without the impossible ones, give median
and interval of the next score at t. A projection, not a promise: a schedule that lowers the rate towards the end, or
data that change on the way, are not in the law. numpy only: the monitor uses it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.8
"""Of the interval: four of five scores should fall into it."""
FEWEST = 4
"""Scores after the start that a law needs: three numbers are fitted."""
FEWEST_RUNS = 2
"""Past runs that make a prior."""

_EXPONENTS = np.geomspace(0.05, 2.5, 120)
_LIKELY_EXPONENT, _EXPONENT_SPREAD = 0.4, 0.8
"""Of a log-normal prior on c; measured exponents of language models are 0.05 to 0.7."""
_DRAWS = 8000
_EARLIEST = 1e-4
"""Scores before this share of the way so far count as the start: the law has a pole at 0."""
_SMALLEST_ERROR = 1e-3
"""Nats; a score on other tokens would differ by more."""
_SEED = 20260101

Floats = npt.NDArray[np.float64]
Point = tuple[float, float]
"""Tokens trained on, and held-out loss in nats a token."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Where a loss is projected to be."""

    tokens: float
    "Trained on by then."
    loss: float
    "Median."
    low: float
    high: float
    "Ends of the interval."
    points: int
    "Scores that it is made of, besides the one at the start."
    runs: int
    "Past runs that it is made of."


@dataclass(frozen=True, kw_only=True)
class Score:
    """A projection against what happened."""

    projection: Projection
    happened: float

    @property
    def inside(self) -> bool:
        """Whether it lies in the interval."""
        return self.projection.low <= self.happened <= self.projection.high

    @property
    def error(self) -> float:
        """Projected median - what happened, in nats."""
        return self.projection.loss - self.happened


def project(curve: Sequence[Point], tokens: float, past: Sequence[float] = ()) -> Projection | None:
    """The projected loss after so many tokens; None where too little is known to say anything.

    Args:
        curve: The scores so far, ascending in tokens; one at 0 is the base model's.
        tokens: Where to project to.
        past: Of each finished run of the same model: its last loss over its first.
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
    """What would have been projected of the last score at some shares of the way, from what was known by then."""
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
    """Possible scores at `tokens`. Shape (draws,); None where no law fits at all."""
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
    """Centre and width of what another run would come to: a few runs are a rough guide."""
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
