"""Learning-rate schedule: a linear warm-up, then half a cosine down to zero."""

from __future__ import annotations

import functools
import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the peak rate used by the update after `step` updates were made.

    The first update already learns, at 1 / warmup_steps, and the last one still does: the cosine reaches 0
    only one step after the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """A schedule to be stepped once an update. `warmup_fraction` of the steps are warm-up, rounded."""
    warmup_steps = round(total_steps * warmup_fraction)
    return LambdaLR(
        optimizer, functools.partial(warmup_cosine_factor, total_steps=total_steps, warmup_steps=warmup_steps)
    )
