"""Stores the measurements of each step and evaluation in columns. A long run has a hundred thousand steps."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.protocol import EvalCompleted, StepCompleted

X_AXES = ("step", "tokens", "time")
"""Choices of the x axis: optimiser updates, tokens trained on, or seconds of the run."""


class Table:
    """Columns of doubles of equal length; a missing value is NaN, as an array has no None."""

    def __init__(self, *names: str) -> None:
        self._columns = {name: array("d") for name in names}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> array[float]:
        return self._columns[name]

    def append(self, **row: float | None) -> None:
        """Appends a row; columns that it does not name get a missing value."""
        for name, column in self._columns.items():
            value = row.get(name)
            column.append(math.nan if value is None else value)

    def last(self, name: str) -> float | None:
        """Returns the newest value of a column, or None if it is missing."""
        column = self._columns[name]
        return column[-1] if column and math.isfinite(column[-1]) else None

    def known(self, name: str) -> list[float]:
        """Returns a column's values without the missing ones."""
        return [value for value in self._columns[name] if math.isfinite(value)]

    def keep_until(self, step: float) -> None:
        """Drops the rows after a step."""
        kept = sum(1 for place in self._columns["step"] if place <= step)
        for column in self._columns.values():
            del column[kept:]


class RunHistory:
    """The curves of one run.

    Attributes:
        steps: One row per completed step. `tokens` counts from the start of the run. `time` is in seconds of
            training processes, without the hours between a run's end and its resumption.
        held_out: One row per evaluation.
    """

    def __init__(self) -> None:
        self.steps = Table(
            "step", "tokens", "time", "loss", "lr", "grad_norm", "speed", "seconds",
            "gpu_allocated", "gpu_reserved", "gpu_peak", "host_used",
        )  # fmt: skip
        self.held_out = Table("step", "tokens", "time", "loss")
        self._clock = 0.0
        "Envelope time of the run's second 0."

    @property
    def tokens(self) -> float:
        """Tokens trained on so far."""
        return self.steps.last("tokens") or 0.0

    def begin(self, time: float) -> None:
        """Sets the clock at the run's first event."""
        self._clock = time

    def go_on(self, first_step: int, time: float) -> None:
        """Starts an attempt after `first_step` and drops the rows of repeated steps."""
        if not len(self.steps):
            return
        self.steps.keep_until(first_step)
        self.held_out.keep_until(first_step)
        self._clock = time - (self.steps.last("time") or 0.0)

    def step_completed(self, event: StepCompleted, time: float) -> None:
        """Appends a completed step."""
        self.steps.append(
            step=event.step,
            tokens=self.tokens + event.tokens,
            time=self._elapsed(time),
            loss=event.loss,
            lr=event.lr,
            grad_norm=event.grad_norm,
            speed=event.tokens_per_second,
            seconds=event.seconds or None,
            gpu_allocated=event.gpu_allocated,
            gpu_reserved=event.gpu_reserved,
            gpu_peak=event.gpu_peak,
            host_used=event.host_used,
        )

    def evaluated(self, event: EvalCompleted, time: float) -> None:
        """Appends an evaluation."""
        elapsed = self._elapsed(time) if event.step else 0.0
        self.held_out.append(step=event.step, tokens=self.tokens, time=elapsed, loss=event.loss)

    def _elapsed(self, time: float) -> float:
        # A clock that was set back must not send a curve back.
        return max(time - self._clock, self.steps.last("time") or 0.0)
