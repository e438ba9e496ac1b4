"""Estimates a run's remaining time, steps and phases together, with the basis of the estimate."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.protocol import PHASES

if TYPE_CHECKING:
    from elite_tui.runs.files import PlannedRun
    from elite_tui.runs.view import RunView
    from engine.protocol import StepCompleted

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


def remaining(view: RunView, planned: PlannedRun | None, now: float | None) -> Estimate | None:
    """Estimates the rest of a run: its steps, and the phases before and after them that the plan promises.

    Args:
        view: The run.
        planned: Its plan.
        now: The training machine's clock; None ignores the time spent in the current step or phase.
    """
    total = view.total_steps
    if total is None:
        return None
    phases = planned.phases if planned is not None else {}
    step_seconds = planned.step_seconds if planned is not None else None
    steps_left, each = total - view.done_steps, view.eta.step_seconds or step_seconds
    place = PHASES.index(view.phase) if view.phase in PHASES else PHASES.index("training")
    coming = sum(seconds for name, seconds in phases.items() if name in PHASES[place + 1 :])
    if view.phase == "training":
        # A measured pace comes with the engine's own estimate, which knows what follows the last step.
        found = view.eta.left(steps_left, now, step_seconds)
        left = None if found is None else found.seconds + (0.0 if view.eta.step_seconds else coming)
        basis = "" if found is None else found.basis
    elif each is None:
        return None
    else:
        left = coming + _phase_left(view, phases, now) + steps_left * each
        basis = "predicted by the plan"
    if left is None:
        return None
    whole = total * each + sum(phases.values()) if each is not None else 0.0
    return Estimate(left, basis, min(1.0, max(0.0, 1 - left / whole)) if whole > 0 else None)


def _phase_left(view: RunView, phases: Mapping[str, float], now: float | None) -> float:
    began = view.eta.step_began
    spent = now - began if now is not None and began is not None else 0.0
    return max(0.0, phases.get(view.phase, 0.0) - max(0.0, spent))
