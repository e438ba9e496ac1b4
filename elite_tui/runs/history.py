"""Stores the measurements of each step and evaluation in columns. A run may have a million of them."""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.protocol.events import EvalCompleted, StepCompleted

X_AXES = ("step", "tokens", "time")
"""Choices of the x axis: optimiser updates, tokens trained on, or seconds of the run."""
AVERAGED = ("loss", "grad_norm", "speed", "seconds")
"""Columns that are drawn smoothed too, or added up."""

MOST_ROWS = 1 << 18
"""Rows of a table; a longer run's early rows are thinned, so that memory and redrawing have a bound at any length."""


class Table:
    """Columns of doubles of equal length; a missing value is NaN, as an array has no None.

    Beyond `most` rows, the earlier half is thinned: of each four rows two remain, with the lowest and the highest value
    of each column, the earlier one first. So every peak stays, the latest rows stay as they are, and a long run's first
    rows grow coarse by powers of two.

    Args:
        names: Columns. The first is the row's number, which never decreases.
        axes: Those that never decrease, of which the first and the last value of a group stay.
        averaged: Columns with a companion that holds the mean of the rows that a row stands for, under `mean_of(name)`.
        most: Rows.

    Attributes:
        version: Another number after every change.
    """

    def __init__(
        self, *names: str, axes: Sequence[str] = (), averaged: Sequence[str] = (), most: int = MOST_ROWS
    ) -> None:
        self._columns = {name: array("d") for name in (*names, *map(mean_of, averaged), ROWS)}
        self._axes, self._averaged, self._most = frozenset(axes), tuple(averaged), most
        self.version = 0

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> array[float]:
        return self._columns[name]

    def append(self, **row: float | None) -> None:
        """Appends a row; columns that it does not name get a missing value."""
        row[ROWS] = 1.0
        for name in self._averaged:
            row[mean_of(name)] = row.get(name)
        for name, column in self._columns.items():
            value = row.get(name)
            column.append(math.nan if value is None else value)
        self.version += 1
        if len(self) >= self._most:
            self._thin()

    def last(self, name: str) -> float | None:
        """Returns the newest value of a column, or None if it is missing."""
        column = self._columns[name]
        return column[-1] if column and math.isfinite(column[-1]) else None

    def known(self, name: str) -> list[float]:
        """Returns a column's values without the missing ones."""
        return [value for value in self._columns[name] if math.isfinite(value)]

    def keep_until(self, step: float) -> None:
        """Drops the rows after a step."""
        steps = next(iter(self._columns.values()))
        kept = bisect.bisect_right(steps, step)
        self.version += 1
        for column in self._columns.values():
            del column[kept:]

    def total(self, name: str) -> float | None:
        """Returns the sum over all appended rows of an averaged column; None if all are missing."""
        known = self._weighted(name)
        return sum(mean * rows for mean, rows in known) if known else None

    def mean(self, name: str) -> float | None:
        """Returns the mean over all appended rows of an averaged column that have it; None if none has."""
        known = self._weighted(name)
        return sum(mean * rows for mean, rows in known) / sum(rows for _, rows in known) if known else None

    def _weighted(self, name: str) -> list[tuple[float, float]]:
        pairs = zip(self._columns[mean_of(name)], self._columns[ROWS], strict=True)
        return [(mean, rows) for mean, rows in pairs if math.isfinite(mean)]

    @property
    def appended(self) -> int:
        """Rows appended, without those that were dropped."""
        return round(sum(self._columns[ROWS]))

    def _thin(self) -> None:
        # numpy is no part of the first frame, and a table that short needs none.
        from elite_tui.runs.thinning import GROUP, ends, extremes, half_sums, means

        count = len(self) // 2 // GROUP * GROUP
        rows = self._columns[ROWS][:count]
        for name, column in self._columns.items():
            values = column[:count]
            if name in self._axes:
                column[:count] = ends(values)
            elif name == ROWS:
                column[:count] = half_sums(values)
            elif name.startswith(_MEAN):
                column[:count] = means(values, rows)
            else:
                column[:count] = extremes(values)


ROWS = "rows"
"""Column of a table: how many appended rows each row stands for."""
_MEAN = "mean "


def mean_of(name: str) -> str:
    """Returns the name of the column with the means of another."""
    return _MEAN + name


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
            "gpu_reserved", "gpu_peak", "host_used", axes=X_AXES, averaged=AVERAGED,
        )  # fmt: skip
        self.held_out = Table("step", "tokens", "time", "loss", axes=X_AXES)
        self._clock = 0.0
        "Envelope time of the run's second 0."

    @property
    def tokens(self) -> float:
        """Tokens trained on so far."""
        return self.steps.last("tokens") or 0.0

    def begin(self, time: float) -> None:
        """Sets the clock at the first event of an attempt, without the time since the last step before it."""
        self._clock = time - (self.steps.last("time") or 0.0)

    def go_on(self, first_step: int, time: float) -> None:
        """Starts an attempt after `first_step` and drops the rows of repeated steps."""
        if not len(self.steps):
            return
        self.steps.keep_until(first_step)
        self.held_out.keep_until(first_step)
        self._clock = time - (self.steps.last("time") or 0.0)

    def step_completed(self, event: StepCompleted, time: float) -> None:
        """Appends a completed step; after a rollback, drops those that it repeats."""
        if event.step <= (self.steps.last("step") or 0.0):
            self.steps.keep_until(event.step - 1)
            self.held_out.keep_until(event.step - 1)
        self.steps.append(
            step=event.step,
            tokens=self.tokens + event.tokens,
            time=self.elapsed(time),
            loss=event.loss,
            lr=event.lr,
            grad_norm=event.grad_norm,
            speed=event.tokens_per_second,
            seconds=event.seconds or None,
            gpu_reserved=event.gpu_reserved,
            gpu_peak=event.gpu_peak,
            host_used=event.host_used,
        )

    def evaluated(self, event: EvalCompleted, time: float) -> None:
        """Appends an evaluation."""
        if event.step < (self.held_out.last("step") or 0.0):
            self.held_out.keep_until(event.step)
        elapsed = self.elapsed(time) if event.step else 0.0
        self.held_out.append(step=event.step, tokens=self.tokens, time=elapsed, loss=event.loss)

    def elapsed(self, time: float) -> float:
        """Returns the seconds of training processes until an envelope's time."""
        # A clock that was set back must not send a curve back.
        return max(time - self._clock, self.steps.last("time") or 0.0)
