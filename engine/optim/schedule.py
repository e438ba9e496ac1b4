"""Learning-rate schedules, and the peak rate that they start from.

Every schedule is stepped once an update. All but one cycle are a factor of the peak rate as a function of the
number of updates made, so that one of them can be held from some update on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

if TYPE_CHECKING:
    from engine.config import TrainingSection

REFERENCE_TOKENS = 8192
"""Tokens an update that `training.learning_rate` stands for where it is scaled."""


def peak_rate(training: TrainingSection, tokens_per_update: int) -> float:
    """`training.learning_rate`, scaled to the size of an update by `training.lr_scaling`.

    In proportion for plain gradient descent; by the square root for Adam, whose step has the size of the rate
    however large the gradient is, and whose noise falls with the square root of the batch.
    """
    powers = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
    return float(training.learning_rate * (tokens_per_update / REFERENCE_TOKENS) ** powers[training.lr_scaling])


def make_schedule(optimizer: Optimizer, training: TrainingSection, total_steps: int) -> LRScheduler:
    """The schedule of a run. Peaks are the rates that the optimiser's groups have now.

    With `training.swa_fraction` the rate stays as it is where the averaging begins (SWA, arXiv 1803.05407).
    """
    if training.schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=peaks, total_steps=total_steps)
    warmup_steps = round(total_steps * training.warmup_fraction)
    power = training.polynomial_power
    last = averaging_start(training, total_steps)

    def factor(step: int) -> float:
        now = min(step, last)
        if training.schedule == "polynomial":
            return warmup_polynomial_factor(now, total_steps, warmup_steps, power)
        return warmup_cosine_factor(now, total_steps, warmup_steps)

    return LambdaLR(optimizer, factor)


def averaging_start(training: TrainingSection, total_steps: int) -> int:
    """Updates made before SWA averages the first time; `total_steps` where it never does."""
    return total_steps - round(total_steps * training.swa_fraction)


def warmup_cosine_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the peak rate used by the update after `step` updates were made.

    The first update already learns, at 1 / warmup_steps, and the last one still does: the cosine reaches 0
    only one step after the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def warmup_polynomial_factor(step: int, total_steps: int, warmup_steps: int, power: float) -> float:
    """As `warmup_cosine_factor`, with (share of the run left) ** power after the warm-up."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return float((1.0 - min(1.0, share)) ** power)
