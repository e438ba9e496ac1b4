"""How long a run will still take, and what that estimate is made from."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.protocol import StepCompleted

LATEST = 20
"""Steps whose mean duration is the pace."""


@dataclass(frozen=True)
class Estimate:
    """Seconds left, and their basis in words."""

    seconds: float
    basis: str


class Eta:
    """Follows the steps' durations and the present step's start."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=LATEST)
        self.step_began: float | None = None
        "Time (the training machine's) at which the present step began."

    def begin(self, time: float) -> None:
        """A step begins now: the first of an attempt, or the next after one that was held up."""
        self.step_began = time

    def completed(self, event: StepCompleted, time: float) -> None:
        """A step ended, and the next began."""
        if event.seconds > 0:
            self._latest.append(event.seconds)
        self.step_began = time

    @property
    def step_seconds(self) -> float | None:
        """Mean duration of the latest steps."""
        return sum(self._latest) / len(self._latest) if self._latest else None

    def left(self, steps: int, now: float | None, planned: float | None) -> Estimate | None:
        """The time that so many steps take, less what the present one has had.

        Args:
            steps: Those not completed.
            now: The training machine's clock; None leaves the present step out.
            planned: Seconds a step that the plan predicts, for the time before the first one is measured.
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
        return Estimate(steps * each - spent, basis)
