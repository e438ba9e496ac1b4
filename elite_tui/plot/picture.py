"""Draws curves into a grid of characters: lines in braille, then letters, markers and limits on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from textual.content import Content

from elite_tui.plot.braille import DOTS_ACROSS, DOTS_DOWN, BrailleCanvas
from elite_tui.plot.columns import in_window, reduce_to_columns
from elite_tui.plot.series import Limit, Series, Values

LETTER_EVERY = 18
"""Cells between two letters on one line."""
Cell = tuple[str, str]
"""A character and its style."""
Cells = list[list[Cell]]


@dataclass(frozen=True)
class Scale:
    """The y axis: its lowest and highest value, and whether equal distances are equal factors."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the bottom, 1 at the top. What has no logarithm lies below."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return -1.0
        return math.log(value / self.low) / math.log(self.high / self.low)

    def row(self, value: float, rows: int) -> int:
        """The row of dots of a value, counted from the top; values outside lie on the edge."""
        return round((1.0 - min(1.0, max(0.0, self.share(value)))) * (rows - 1))


def scale_of(
    series: Sequence[Series],
    limits: Sequence[Limit],
    window: tuple[float, float],
    *,
    log: bool = False,
    from_zero: bool = False,
) -> Scale | None:
    """A y axis that holds everything in view; None where nothing is."""
    found = [in_window(one.x, one.y, *window)[1] for one in series]
    shown: Values = np.concatenate(found) if found else np.empty(0)
    shown = shown[np.isfinite(shown) & ((shown > 0) | (not log))]
    if not shown.size:
        return None
    levels = [limit.value for limit in limits if limit.value > 0 or not log]
    low, high = min([float(shown.min()), *levels]), max([float(shown.max()), *levels])
    if from_zero and not log:
        return Scale(min(0.0, low), high * 1.05 or 1.0)
    if low == high:
        margin = abs(low) * 0.05 or 0.5
        return Scale(low - margin, high + margin, log)
    return Scale(low, high, log)


def draw(
    series: Sequence[Series],
    limits: Sequence[Limit],
    window: tuple[float, float],
    scale: Scale,
    size: tuple[int, int],
) -> Cells:
    """The plot, without its axes.

    Args:
        series: Drawn in this order, those with markers last.
        limits: Dashed lines, with their names at the right.
        window: Edges of the x axis.
        scale: The y axis.
        size: Columns and rows of characters.
    """
    width, height = size
    cells: Cells = [[(" ", "")] * width for _ in range(height)]
    for limit in limits:
        _draw_limit(cells, limit, scale, size)
    for one in sorted(series, key=lambda one: bool(one.marker)):
        x, y = in_window(one.x, one.y, *window)
        if scale.log:
            y = np.where(y > 0, y, np.nan)
        if one.marker:
            _draw_markers(cells, one, x, y, window, scale, size)
        else:
            _draw_line(cells, one, x, y, window, scale, size)
    return cells


def _draw_limit(cells: Cells, limit: Limit, scale: Scale, size: tuple[int, int]) -> None:
    width, height = size
    row = cells[scale.row(limit.value, height)]
    name = f" {limit.name} "
    for index in range(width):
        row[index] = ("╌", "$warning")
    if len(name) + 4 < width:
        for index, character in enumerate(name):
            row[width - len(name) - 2 + index] = (character, "$warning")


def _draw_line(
    cells: Cells, one: Series, x: Values, y: Values, window: tuple[float, float], scale: Scale, size: tuple[int, int]
) -> None:
    width, height = size
    rows = height * DOTS_DOWN
    canvas = BrailleCanvas(width, height)
    columns = reduce_to_columns(x, y, *window, width * DOTS_ACROSS)
    former = None
    for column in columns:
        canvas.line(column.x, scale.row(column.low, rows), column.x, scale.row(column.high, rows))
        if former is not None and column.joined:
            canvas.line(former.x, scale.row(former.last, rows), column.x, scale.row(column.first, rows))
        former = column
    for index, text in enumerate(canvas.rows()):
        for place, character in enumerate(text):
            if character != " ":
                cells[index][place] = (character, one.style)
    if not one.letter:
        return
    # Each letter has places of its own, so that lines that run together still show all of theirs.
    offset = (ord(one.letter[0]) * 5) % LETTER_EVERY
    for column in columns:
        cell = column.x // DOTS_ACROSS
        if cell % LETTER_EVERY == offset and column.x % DOTS_ACROSS == 0:
            cells[scale.row(column.last, rows) // DOTS_DOWN][cell] = (one.letter, f"bold {one.style}")
    if columns:
        end = columns[-1]
        cells[scale.row(end.last, rows) // DOTS_DOWN][end.x // DOTS_ACROSS] = (one.letter, f"bold {one.style}")


def _draw_markers(
    cells: Cells, one: Series, x: Values, y: Values, window: tuple[float, float], scale: Scale, size: tuple[int, int]
) -> None:
    width, height = size
    span = window[1] - window[0]
    for place, value in zip(x.tolist(), y.tolist(), strict=True):
        # The ends that a cut line has at the edges are no points.
        if np.isfinite(value) and place in one.x:
            cell = round((place - window[0]) / span * (width - 1)) if span > 0 else 0
            cells[scale.row(value, height)][cell] = (one.marker, one.style)


def joined(cells: Sequence[Cell]) -> Content:
    """One row of characters as text, neighbours of one style together."""
    spans: list[Cell] = []
    for character, style in cells:
        if spans and spans[-1][1] == style:
            spans[-1] = (spans[-1][0] + character, style)
        else:
            spans.append((character, style))
    return Content.assemble(*(Content.styled(text, style) if style else Content(text) for text, style in spans))
