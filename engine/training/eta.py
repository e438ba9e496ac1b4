"""Remaining time of a run: its updates, the scorings between them, and what comes after the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.data.window_source import Update

ETA_STEPS = 20
"""Latest steps whose mean pace gives the ETA."""


@dataclass(kw_only=True)
class Eta:
    """Estimates the remaining seconds from the pace of the latest steps, as a multiple of the planned one.

    Stages of different windows differ in time; the plan knows by how much.
    """

    updates: Sequence[Update]
    planned: Sequence[float] = (1.0,)
    "Planned seconds of an update, by stage."
    score: float = 0.0
    "Seconds of one scoring of the held-out files."
    score_every: int = 0
    "Updates between two scorings; 0 is none on the way."
    after: float = 0.0
    "Seconds after the last update: evaluation and saving."
    _paces: deque[float] = field(default_factory=lambda: deque(maxlen=ETA_STEPS))

    def completed(self, done: int, seconds: float) -> float:
        """Returns the remaining seconds after `done` updates, of which the last took `seconds`."""
        self._paces.append(seconds / self._planned(self.updates[done - 1]))
        left = self.updates[done:]
        pace = sum(self._paces) / len(self._paces)
        scores = (
            max(0, (len(self.updates) - 1) // self.score_every - done // self.score_every) if self.score_every else 0
        )
        return pace * sum(map(self._planned, left)) + scores * self.score + self.after

    def _planned(self, update: Update) -> float:
        return max(self.planned[min(update.stage, len(self.planned) - 1)], 1e-9)
