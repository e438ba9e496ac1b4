"""A compact line chart in braille, which never fails on a missing value and never hides a peak.

More points than dot columns are reduced to each column's minimum and maximum, so a single bad step stays
visible however long the run. A missing value (None, or not finite) leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.widget import Widget

from elite_tui.figures import count_in_words, number_in_words
from elite_tui.widgets.braille import DOTS_ACROSS, DOTS_DOWN, BrailleCanvas

Point = tuple[float, "float | None"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One named sequence of points in rising x."""

    name: str
    points: Sequence[Point]
    style: str = "$primary"
    marker: str = ""
    "One character drawn at each point; empty draws a line."


@dataclass(frozen=True)
class Column:
    """The points of an unbroken stretch that share one column of dots."""

    x: int
    first: float
    last: float
    low: float
    high: float


def is_number(value: float | None) -> bool:
    """Whether a value can be drawn."""
    return value is not None and math.isfinite(value)


def unbroken_stretches(points: Iterable[Point]) -> list[list[tuple[float, float]]]:
    """The points between missing values, which a line must not bridge."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y):
            stretches[-1].append((x, y))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def reduce_to_columns(
    stretch: Sequence[tuple[float, float]], x_low: float, x_high: float, columns: int
) -> list[Column]:
    """At most one `Column` a dot column: what a line through all the points would cover there."""
    span = x_high - x_low
    reduced: list[Column] = []
    for x, y in stretch:
        place = 0 if span <= 0 else min(columns - 1, max(0, round((x - x_low) / span * (columns - 1))))
        if reduced and reduced[-1].x == place:
            before = reduced[-1]
            reduced[-1] = Column(place, before.first, y, min(before.low, y), max(before.high, y))
        else:
            reduced.append(Column(place, y, y, y, y))
    return reduced


def value_range(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest value, spread a little where they are equal; (0, 1) where there is none."""
    found = list(values)
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    if low == high:
        margin = abs(low) * 0.05 or 0.5
        return low - margin, high + margin
    return low, high


class LineChart(Widget):
    """Series over a shared x axis, with axis labels and a legend that carries the latest values."""

    can_focus = False

    def __init__(self, title: str, *, x_label: str = "step", empty: str = "no values yet", id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._title = title
        self._x_label = x_label
        self._empty = empty
        self._series: tuple[Series, ...] = ()

    def show(self, *series: Series) -> None:
        """Replaces what is drawn."""
        self._series = series
        self.refresh()

    def render(self) -> Content:
        """Legend, plot and axes in the space there is."""
        width, height = self.content_size.width, self.content_size.height
        if width < 24 or height < 4:
            return Content("too small"[:width])
        legend = self._legend()
        points = [point for series in self._series for point in series.points if is_number(point[1])]
        if not points:
            return Content("\n").join([legend, Content.styled(self._empty, "$muted")])
        x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
        y_low, y_high = value_range(y for _, y in points if y is not None)
        plot_height = height - 3
        labels = [number_in_words(y_high - (y_high - y_low) * share, 3) for share in (0.0, 0.5, 1.0)]
        gutter = max(len(label) for label in labels)
        plot_width = width - gutter - 2
        cells = self._plot(plot_width, plot_height, (x_low, x_high), (y_low, y_high))
        label_rows = {0: labels[0], plot_height - 1: labels[2]}
        if plot_height >= 5:
            label_rows[(plot_height - 1) // 2] = labels[1]
        lines = [legend]
        for row, cell in enumerate(cells):
            label = label_rows.get(row, "")
            lines.append(Content.styled(f"{label:>{gutter}} {'┤' if label else '│'}", "$muted").append(cell))
        lines.append(Content.styled(" " * gutter + " └" + "─" * plot_width, "$muted"))
        lines.append(self._x_axis(gutter + 2, plot_width, x_low, x_high))
        return Content("\n").join(lines)

    def _legend(self) -> Content:
        legend = Content.styled(self._title, "bold")
        for series in self._series:
            latest = next((y for _, y in reversed(series.points) if is_number(y)), None)
            legend = legend.append(Content.styled(f"   {series.marker or '━'} ", series.style))
            legend = legend.append(f"{series.name} {number_in_words(latest)}")
        return legend

    def _plot(
        self, width: int, height: int, x_range: tuple[float, float], y_range: tuple[float, float]
    ) -> list[Content]:
        """The rows of the plot: every line series on its own canvas, markers on top."""
        x_low, x_high = x_range
        y_low, y_high = y_range
        columns, rows = width * DOTS_ACROSS, height * DOTS_DOWN

        def dot_row(value: float) -> int:
            return round((y_high - value) / (y_high - y_low) * (rows - 1))

        grid: list[list[tuple[str, str]]] = [[(" ", "")] * width for _ in range(height)]
        for series in sorted(self._series, key=lambda series: bool(series.marker)):
            canvas = BrailleCanvas(width, height)
            for stretch in unbroken_stretches(series.points):
                before: Column | None = None
                for column in reduce_to_columns(stretch, x_low, x_high, columns):
                    if series.marker:
                        grid[dot_row(column.last) // DOTS_DOWN][column.x // DOTS_ACROSS] = (series.marker, series.style)
                        continue
                    canvas.line(column.x, dot_row(column.low), column.x, dot_row(column.high))
                    if before is not None:
                        canvas.line(before.x, dot_row(before.last), column.x, dot_row(column.first))
                    before = column
            for row, text in enumerate(canvas.rows()):
                for index, character in enumerate(text):
                    if character != " ":
                        grid[row][index] = (character, series.style)
        return [_join_cells(cells) for cells in grid]

    def _x_axis(self, indent: int, width: int, low: float, high: float) -> Content:
        left, right = count_in_words(low), f"{count_in_words(high)} {self._x_label}"
        if low == high:
            left = ""
        return Content.styled(" " * indent + left + right.rjust(width - len(left)), "$muted")


def _join_cells(cells: Sequence[tuple[str, str]]) -> Content:
    """One row of styled characters, neighbours of one style joined."""
    spans: list[tuple[str, str]] = []
    for character, style in cells:
        if spans and spans[-1][1] == style:
            spans[-1] = (spans[-1][0] + character, style)
        else:
            spans.append((character, style))
    return Content.assemble(*(Content.styled(text, style) if style else Content(text) for text, style in spans))
