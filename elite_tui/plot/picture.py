"""Draws curves into a grid of characters: limits, then lines in braille, letters and markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from textual.content import Content

from elite_tui.plot.columns import Column, in_window, reduce_to_columns
from elite_tui.plot.series import Limit, Series, Values

# Bit of the dot at [row][column] inside a cell, from the Unicode block's definition.
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

DOTS_ACROSS = 2
DOTS_DOWN = 4


class BrailleCanvas:
    """Dots on `width` × `height` character cells. Dot (0, 0) is at the top left; dots outside are ignored."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._cells = [[0] * width for _ in range(height)]

    def dot(self, x: int, y: int) -> None:
        """Sets one dot."""
        column, row = x // DOTS_ACROSS, y // DOTS_DOWN
        if 0 <= column < self.width and 0 <= row < self.height:
            self._cells[row][column] |= _BITS[y % DOTS_DOWN][x % DOTS_ACROSS]

    def line(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Sets the dots between two points, both inclusive (Bresenham)."""
        dx, dy = abs(x1 - x0), -abs(y1 - y0)
        step_x, step_y = (1 if x0 < x1 else -1), (1 if y0 < y1 else -1)
        error = dx + dy
        while True:
            self.dot(x0, y0)
            if (x0, y0) == (x1, y1):
                return
            doubled = 2 * error
            if doubled >= dy:
                error += dy
                x0 += step_x
            if doubled <= dx:
                error += dx
                y0 += step_y

    def rows(self) -> list[str]:
        """Returns the cells as text, one string per row. An empty cell is a space, so that markers show there."""
        return ["".join(chr(0x2800 + bits) if bits else " " for bits in row) for row in self._cells]


LETTER_EVERY = 18
"""Cells between two letters on one line."""
Cell = tuple[str, str]
"""A character and its style."""
Cells = list[list[Cell]]


@dataclass(frozen=True)
class Scale:
    """The y axis: lowest and highest value, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Returns a value's position, 0 at the bottom and 1 at the top; on a log axis, non-positive values give -1."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return -1.0
        return math.log(value / self.low) / math.log(self.high / self.low)

    def row(self, value: float, rows: int) -> int:
        """Returns the row of dots of a value, counted from the top; clamps values outside."""
        return round((1.0 - min(1.0, max(0.0, self.share(value)))) * (rows - 1))

    def rows(self, values: Values, rows: int) -> NDArray[np.int64]:
        """Returns `row` of each finite value."""
        if self.log:
            ratios = np.log(np.where(values > 0, values, self.low) / self.low) / math.log(self.high / self.low)
            shares = np.where(values > 0, ratios, -1.0)
        else:
            shares = (values - self.low) / (self.high - self.low)
        return np.rint((1.0 - np.clip(shares, 0.0, 1.0)) * (rows - 1)).astype(np.int64)


def scale_of(
    series: Sequence[Series],
    limits: Sequence[Limit],
    window: tuple[float, float],
    *,
    log: bool = False,
) -> Scale | None:
    """Fits a y axis to the values in view; None if there are none."""
    found = [in_window(one.x, one.y, *window)[1] for one in series]
    shown: Values = np.concatenate(found) if found else np.empty(0)
    shown = shown[np.isfinite(shown) & ((shown > 0) | (not log))]
    if not shown.size:
        return None
    levels = [limit.value for limit in limits if limit.value > 0 or not log]
    low, high = min([float(shown.min()), *levels]), max([float(shown.max()), *levels])
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
    """Draws the plot without its axes.

    Args:
        series: In drawing order; those with markers are drawn last.
        limits: Dashed lines, beneath the curves.
        window: Edges of the x axis.
        scale: The y axis.
        size: Columns and rows of characters.
    """
    width, height = size
    cells: Cells = [[(" ", "")] * width for _ in range(height)]
    for limit in limits:
        _draw_limit(cells, limit, scale, size)
    # Lines first, then letters and markers: a letter must not vanish behind another line.
    lines: list[tuple[Series, list[Column]]] = []
    for one in series:
        if not one.marker:
            x, y = in_window(one.x, _drawable(one.y, scale), *window)
            columns = reduce_to_columns(x, y, *window, width * DOTS_ACROSS)
            _draw_line(cells, columns, one.style, scale, size)
            lines.append((one, columns))
    for one, columns in lines:
        if one.letter and columns:
            _draw_letters(cells, columns, one, scale, height * DOTS_DOWN)
    for one in series:
        if one.marker:
            _draw_markers(cells, one, window, scale, size)
    return cells


def _drawable(y: Values, scale: Scale) -> Values:
    return np.where(y > 0, y, np.nan) if scale.log else y


def _draw_limit(cells: Cells, limit: Limit, scale: Scale, size: tuple[int, int]) -> None:
    width, height = size
    cells[scale.row(limit.value, height)] = [("╌", "$warning")] * width


def _draw_line(cells: Cells, columns: Sequence[Column], style: str, scale: Scale, size: tuple[int, int]) -> None:
    width, height = size
    rows = height * DOTS_DOWN
    canvas = BrailleCanvas(width, height)
    former = None
    for column in columns:
        canvas.line(column.x, scale.row(column.low, rows), column.x, scale.row(column.high, rows))
        if former is not None and column.joined:
            canvas.line(former.x, scale.row(former.last, rows), column.x, scale.row(column.first, rows))
        former = column
    for index, text in enumerate(canvas.rows()):
        for place, character in enumerate(text):
            if character != " ":
                cells[index][place] = (character, style)


def _draw_letters(cells: Cells, columns: Sequence[Column], one: Series, scale: Scale, rows: int) -> None:
    """Draws the line's letter at intervals and at its end; each letter has positions of its own."""
    offset = (ord(one.letter[0]) * 5) % LETTER_EVERY
    for column in columns:
        cell = column.x // DOTS_ACROSS
        if column is columns[-1] or (cell % LETTER_EVERY == offset and column.x % DOTS_ACROSS == 0):
            cells[scale.row(column.last, rows) // DOTS_DOWN][cell] = (one.letter, f"bold {one.style}")


def _draw_markers(cells: Cells, one: Series, window: tuple[float, float], scale: Scale, size: tuple[int, int]) -> None:
    width, height = size
    left, span = window[0], window[1] - window[0]
    x, y = one.x, _drawable(one.y, scale)
    shown = np.isfinite(y) & (x >= window[0]) & (x <= window[1])
    places = np.rint((x[shown] - left) / span * (width - 1)) if span > 0 else np.zeros(int(shown.sum()))
    rows = scale.rows(y[shown], height)
    # Each cell once: a run may be evaluated a hundred thousand times.
    for place, row in {*zip(places.astype(int).tolist(), rows.tolist(), strict=True)}:
        cells[row][place] = (one.marker, one.style)


def joined(cells: Sequence[Cell]) -> Content:
    """Joins one row of characters to text, merging neighbours of one style."""
    spans: list[Cell] = []
    for character, style in cells:
        if spans and spans[-1][1] == style:
            spans[-1] = (spans[-1][0] + character, style)
        else:
            spans.append((character, style))
    return Content.assemble(*(Content.styled(text, style) if style else Content(text) for text, style in spans))
