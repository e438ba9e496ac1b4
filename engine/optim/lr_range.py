"""The learning-rate range test (arXiv 1506.01186): raise the rate at every step, and see where the loss turns up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FILE_NAME = "lr_range.json"
"""What a test leaves in its run's directory."""
SMOOTHING = 0.8
"""Weight of the past in the smoothed loss; corrected for its start, as Adam's moments are."""
LOST_AGAIN = 0.5
"""The test ends where the smoothed loss has lost this share of what it had won. Norms bound the loss of a transformer
with random weights, so that a multiple of the lowest loss, which others wait for, may never come."""
WORTH_COUNTING = 0.02
"""Share of the first loss that must have been won before losing it again counts: less may be noise."""
SAFETY = 10.0
"""The suggested rate is this much below the one at which the loss was lowest: there it is about to turn."""


@dataclass(frozen=True, kw_only=True)
class LearningRateRange:
    """What a test found."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    "Of the step taken at each rate, nats a token."
    smoothed: tuple[float, ...]
    suggested: float
    diverged_at: float | None
    "First rate at which the smoothed loss had left its lowest value for good; None if it never did."


def range_rates(lowest: float, highest: float, steps: int) -> list[float]:
    """Rates that grow by the same factor from step to step."""
    return [lowest * (highest / lowest) ** (i / max(1, steps - 1)) for i in range(steps)]


def range_test(train_step: Callable[[float], float], rates: Sequence[float]) -> LearningRateRange:
    """Takes one training step at each rate until the loss diverges, and suggests a rate.

    Args:
        train_step: Trains one step at a rate and returns the loss before it, nats a token.
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
