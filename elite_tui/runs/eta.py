"""Estimates the remaining time of a run's steps, with the basis of the estimate."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.protocol.events import StepCompleted

LATEST = 20
"""Steps averaged for the pace."""


@dataclass(frozen=True)
class Estimate:
    """Remaining seconds, and the basis of the estimate in words."""

    seconds: float
    basis: str
    share: float | None = None
    "Share of the run's whole time that has passed."


class Eta:
    """Tracks step durations and the start of the current step."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._promised: float | None = None
        self.step_began: float | None = None
        "Time at which the current step began, by the training machine's clock."

    def begin(self, time: float) -> None:
        """Restarts the current step's clock, at an attempt's start or after an interruption between steps."""
        self.step_began = time

    def completed(self, event: StepCompleted, time: float) -> None:
        """Records a finished step; the next one begins."""
        if event.seconds > 0:
            self._latest.append(event.seconds)
        self._promised = event.eta_seconds
        self.step_began = time

    @property
    def step_seconds(self) -> float | None:
        """Mean duration of the latest steps, in seconds."""
        return sum(self._latest) / len(self._latest) if self._latest else None

    def left(self, steps: int, now: float | None, planned: float | None) -> Estimate | None:
        """Estimates the time of the remaining steps, less the time already spent in the current one.

        Args:
            steps: Number of steps not completed.
            now: The training machine's clock; None ignores the time spent in the current step.
            planned: Planned seconds per step, used until the first step is measured.
        """
        each, count = self.step_seconds, len(self._latest)
        if each is not None:
            basis = f"pace of {count} steps" if count > 1 else "pace of one step"
        elif planned:
            each, basis = planned, "predicted by the plan"
        else:
            return None
        spent = 0.0
        if steps and now is not None and self.step_began is not None:
            spent = min(each, max(0.0, now - self.step_began))
        if self._promised is not None and count:
            # The engine's own estimate knows the windows to come, and what follows the last step.
            return Estimate(max(0.0, self._promised - spent), basis)
        return Estimate(steps * each - spent, basis)
