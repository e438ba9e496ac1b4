"""The learning-rate range test (arXiv 1506.01186), which raises the rate at every step until the loss diverges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FILE_NAME = "lr_range.json"
"""Result file in the run's directory."""
SMOOTHING = 0.8
"""Decay of the smoothed loss, an exponential average with the bias correction of Adam's moments."""
LOST_AGAIN = 0.5
"""The test ends when the smoothed loss has risen by this share of its decrease so far. Norms bound the loss of a
transformer with random weights, so that it may never reach a multiple of the lowest loss, the usual criterion."""
WORTH_COUNTING = 0.02
"""Least decrease, as a share of the first loss, before a rise counts as divergence; less may be noise."""
SAFETY = 10.0
"""Ratio of the rate of lowest loss, where the loss is about to rise, to the suggested rate."""


@dataclass(frozen=True, kw_only=True)
class LearningRateRange:
    """Result of a test."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    "Loss before the step at each rate, in nats a token."
    smoothed: tuple[float, ...]
    suggested: float
    diverged_at: float | None
    "Rate at which the loss diverged and the test ended; None if it did not."


def range_rates(lowest: float, highest: float, steps: int) -> list[float]:
    """Lists rates that grow by the same factor from step to step."""
    return [lowest * (highest / lowest) ** (i / max(1, steps - 1)) for i in range(steps)]


def range_test(train_step: Callable[[float], float], rates: Sequence[float]) -> LearningRateRange:
    """Takes one training step at each rate until the loss diverges, and suggests a rate.

    Args:
        train_step: Trains one step at a rate and returns the loss before it, in nats a token.
        rates: Ascending.
    """
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    diverged_at = None
    for made, rate in enumerate(rates, start=1):
        loss = train_step(rate)
        if not math.isfinite(loss):
            diverged_at = rate
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        losses.append(loss)
        smoothed.append(average / (1 - SMOOTHING**made))
        won = smoothed[0] - min(smoothed)
        lost = smoothed[-1] - min(smoothed)
        if lost > LOST_AGAIN * won > LOST_AGAIN * WORTH_COUNTING * smoothed[0] or lost > LOST_AGAIN * smoothed[0]:
            diverged_at = rate
            break
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__) if smoothed else 0
    return LearningRateRange(
        rates=tuple(rates[: len(losses)]),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        suggested=rates[lowest] / SAFETY,
        diverged_at=diverged_at,
    )
