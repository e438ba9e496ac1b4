"""Learning-rate schedules, and the peak rate that they start from.

A schedule is a pure function of (updates made, updates in all): it says which share of its peak rate each update uses,
and with one cycle also its momentum. Nothing else is remembered but the position and what recoveries lowered the rate
to, so that a run goes on with more updates, fewer, or another rate as if it had been so from its beginning.
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
"""Tokens an update that `training.learning_rate` stands for where it is scaled."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one update uses."""

    factor: float
    "Share of the peak rate."
    momentum: float | None = None
    "Adam's first beta; None leaves the optimiser's."


Curve = Callable[[int], Setting]
"""The setting of the update after so many updates. Pure."""


class Schedule:
    """Sets an optimiser's rates to `peak × factor(position) × scale` in each of its groups.

    Attributes:
        position: Updates made or passed over.
        scale: What recoveries lowered the rate to, as a share.

    Args:
        optimizer: Its groups' rates are the peaks.
        curve: See Curve. It is asked for positions below `total`, and for the last of them after that.
        total: Updates in all.
    """

    def __init__(self, optimizer: Optimizer, curve: Curve, total: int) -> None:
        self._optimizer, self._curve, self._total = optimizer, curve, total
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self.position, self.scale = 0, 1.0
        self._apply()

    def step(self, updates: int = 1) -> None:
        """Moves on by so many updates."""
        self.position += updates
        self._apply()

    def scale_rate(self, ratio: float) -> None:
        """Multiplies the rate of this update and of all that follow."""
        self.scale *= ratio
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The rates of the next update, by group."""
        return [float(group["lr"]) for group in self._groups()]

    def state_dict(self) -> dict[str, Any]:
        """Position, total and scale. The total is for readers: a run goes on with the one that it is given."""
        return {"position": self.position, "total": self._total, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any], *, scale: float = 1.0) -> None:
        """Takes on what `state_dict` gave, or a scheduler of torch's; the optimiser's own state is loaded before.

        Args:
            state: Only its position and scale count.
            scale: For a state of torch's, which does not say it by itself.

        Raises:
            KeyError, TypeError, ValueError: it is neither.
        """
        if "position" in state:
            self.position, self.scale = int(state["position"]), float(state["scale"])
        else:
            self.position, self.scale = int(state["last_epoch"]), scale
        self._apply()

    def _groups(self) -> list[dict[str, Any]]:
        # ZeRO may have put groups of its own behind them.
        return self._optimizer.param_groups[: len(self._peaks)]

    def _apply(self) -> None:
        setting = self._curve(min(self.position, max(self._total - 1, 0)))
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["initial_lr"] = peak
            group["lr"] = peak * setting.factor * self.scale
            if setting.momentum is not None:
                group["betas"] = (setting.momentum, *group["betas"][1:])


def peak_rate(training: TrainingSection, tokens_per_update: int) -> float:
    """`training.learning_rate`, scaled to the size of an update by `training.lr_scaling`.

    In proportion for plain gradient descent; by the square root for Adam, whose step has the size of the rate
    however large the gradient is, and whose noise falls with the square root of the batch.
    """
    powers = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
    return float(training.learning_rate * (tokens_per_update / REFERENCE_TOKENS) ** powers[training.lr_scaling])


def make_schedule(optimizer: Optimizer, training: TrainingSection, total_steps: int) -> Schedule:
    """The schedule of a run. Peaks are the rates that the optimiser's groups have now.

    With `training.swa_fraction` the rate stays as it is where the averaging begins (SWA, arXiv 1803.05407).
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
    return _cosine(1.0, 0.0, share)


def warmup_polynomial_factor(step: int, total_steps: int, warmup_steps: int, power: float) -> float:
    """As `warmup_cosine_factor`, with (share of the run left) ** power after the warm-up."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return float((1.0 - min(1.0, share)) ** power)


RISE = 0.3
"""Share of one cycle over which the rate rises, torch's default."""
FIRST, LAST = 1 / 25, 1 / 250_000
"""Shares of the peak at the first and the last update, torch's defaults."""
LOW_MOMENTUM, HIGH_MOMENTUM = 0.85, 0.95
"""At the peak of the rate, and at both ends."""


def one_cycle_setting(step: int, total_steps: int) -> Setting:
    """One cycle (arXiv 1708.07120) with half cosines, as torch's OneCycleLR has it: up to the peak, then far down."""
    top = RISE * total_steps - 1
    if step <= top:
        share = step / top if top > 0 else 1.0
        return Setting(factor=_cosine(FIRST, 1.0, share), momentum=_cosine(HIGH_MOMENTUM, LOW_MOMENTUM, share))
    share = (step - top) / (total_steps - 1 - top)
    return Setting(factor=_cosine(1.0, LAST, share), momentum=_cosine(LOW_MOMENTUM, HIGH_MOMENTUM, share))


def _cosine(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
