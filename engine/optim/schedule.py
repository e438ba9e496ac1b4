"""Learning-rate schedules, and the peak rate that they scale.

A schedule is a pure function of (updates made, updates in all). It returns the share of the peak rate that an update
uses, and with one cycle also the momentum. The only state is the position and the scale that recoveries lowered the
rate to. So a run resumes with more updates, fewer, or another rate as if it had had them from the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

if TYPE_CHECKING:
    from engine.config import TrainingSection

REFERENCE_TOKENS = 8192
"""Tokens of the update that `training.learning_rate` refers to where it is scaled."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Rate and momentum of one update."""

    factor: float
    "Share of the peak rate."
    momentum: float | None = None
    "Adam's first beta; None keeps the optimiser's."


Curve = Callable[[int], Setting]
"""Returns the setting of the update after the given number of updates. Pure."""


class Schedule:
    """Sets an optimiser's rates to `peak × factor(position) × scale` in each of its groups.

    Attributes:
        position: Updates made or skipped.
        scale: Share of the scheduled rate that recoveries lowered the rate to.

    Args:
        optimizer: The optimiser, whose groups' present rates are the peaks.
        curve: See Curve. It is called for positions below `total`, and with the last of them after that.
        total: Updates in all.
    """

    def __init__(self, optimizer: Optimizer, curve: Curve, total: int) -> None:
        self._optimizer, self._curve, self._total = optimizer, curve, total
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self.position, self.scale = 0, 1.0
        self._apply()

    def step(self, updates: int = 1) -> None:
        """Advances by `updates` updates."""
        self.position += updates
        self._apply()

    def scale_rate(self, ratio: float) -> None:
        """Multiplies the rates of this update and of all later ones."""
        self.scale *= ratio
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Returns the rates of the next update, by group."""
        return [float(group["lr"]) for group in self._groups()]

    def state_dict(self) -> dict[str, Any]:
        """Returns position, total and scale. The total is informative; a resumed run uses its own."""
        return {"position": self.position, "total": self._total, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any], *, scale: float = 1.0) -> None:
        """Restores the state of `state_dict` or of a torch scheduler; the optimiser's own state is loaded before.

        Args:
            state: Only its position and scale are used.
            scale: Scale for a torch scheduler's state, which has none.

        Raises:
            KeyError, TypeError, ValueError: the state is neither.
        """
        if "position" in state:
            self.position, self.scale = int(state["position"]), float(state["scale"])
        else:
            self.position, self.scale = int(state["last_epoch"]), scale
        self._apply()

    def _groups(self) -> list[dict[str, Any]]:
        # ZeRO may have appended groups of its own.
        return self._optimizer.param_groups[: len(self._peaks)]

    def _apply(self) -> None:
        setting = self._curve(min(self.position, max(self._total - 1, 0)))
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["initial_lr"] = peak
            group["lr"] = peak * setting.factor * self.scale
            if setting.momentum is not None:
                group["betas"] = (setting.momentum, *group["betas"][1:])


def peak_rate(training: TrainingSection, tokens_per_update: int) -> float:
    """Scales `training.learning_rate` to the size of an update by `training.lr_scaling`.

    Linear scaling suits plain gradient descent. Square-root scaling suits Adam, whose step has the size of the rate for
    any gradient, and whose noise falls with the square root of the batch.

    Raises:
        ValueError: the rate is unset; a run's plan sets it (engine.plan.learning_rate).
    """
    if training.learning_rate is None:
        raise ValueError("training.learning_rate is unset")
    powers = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
    return float(training.learning_rate * (tokens_per_update / REFERENCE_TOKENS) ** powers[training.lr_scaling])


def make_schedule(optimizer: Optimizer, training: TrainingSection, total_steps: int) -> Schedule:
    """Makes the schedule of a run, whose peaks are the present rates of the optimiser's groups.

    With `training.swa_fraction` the rate is constant from the start of the averaging on (SWA, arXiv 1803.05407).
    """
    warmup_steps = round(total_steps * training.warmup_fraction)
    power = training.polynomial_power
    last = averaging_start(training, total_steps)

    def curve(step: int) -> Setting:
        if training.schedule == "one_cycle":
            return one_cycle_setting(step, total_steps)
        now = min(step, last)
        if training.schedule == "polynomial":
            return Setting(factor=warmup_polynomial_factor(now, total_steps, warmup_steps, power))
        return Setting(factor=warmup_cosine_factor(now, total_steps, warmup_steps))

    return Schedule(optimizer, curve, total_steps)


def averaging_start(training: TrainingSection, total_steps: int) -> int:
    """Returns the number of updates before SWA's first average; `total_steps` where there is none."""
    return total_steps - round(total_steps * training.swa_fraction)


def warmup_cosine_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Returns the share of the peak rate for the update after `step` updates.

    No update has a rate of 0. The first one uses 1 / warmup_steps, and the cosine reaches 0 only one step after the
    end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return _cosine(1.0, 0.0, share)


def warmup_polynomial_factor(step: int, total_steps: int, warmup_steps: int, power: float) -> float:
    """Returns the same share as `warmup_cosine_factor`, but (share of the run left) ** power after the warm-up."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return float((1.0 - min(1.0, share)) ** power)


RISE = 0.3
"""Share of one cycle with a rising rate, torch's default."""
FIRST, LAST = 1 / 25, 1 / 250_000
"""Shares of the peak at the first and the last update, torch's defaults."""
LOW_MOMENTUM, HIGH_MOMENTUM = 0.85, 0.95
"""Momentum at the peak of the rate, and at both ends."""


def one_cycle_setting(step: int, total_steps: int) -> Setting:
    """Returns the setting of one cycle (arXiv 1708.07120), in half cosines, as in torch's OneCycleLR."""
    top = RISE * total_steps - 1
    if step <= top:
        share = step / top if top > 0 else 1.0
        return Setting(factor=_cosine(FIRST, 1.0, share), momentum=_cosine(HIGH_MOMENTUM, LOW_MOMENTUM, share))
    share = (step - top) / (total_steps - 1 - top)
    return Setting(factor=_cosine(1.0, LAST, share), momentum=_cosine(LOW_MOMENTUM, HIGH_MOMENTUM, share))


def _cosine(start: float, end: float, share: float) -> float:
    """Interpolates from start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
