"""Draws a line chart in braille that handles missing values, keeps every peak, and supports zoom and pan.

More points than dot columns are reduced to each column's minimum and maximum, so a single bad step stays
visible in a run of any length. A missing value (NaN) leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content
from textual.message import Message

from elite_tui.format.figures import number_in_words
from elite_tui.plot import ticks
from elite_tui.plot.picture import Scale, draw, joined, scale_of
from elite_tui.plot.series import Limit, Mark, Series
from elite_tui.plot.viewport import Viewport
from elite_tui.widgets.diff_widget import DiffWidget

if TYPE_CHECKING:
    from textual.events import Leave, MouseMove, MouseScrollDown, MouseScrollLeft, MouseScrollRight, MouseScrollUp

ZOOM = 0.7
"""Length of the stretch after zooming in once, relative to the one before."""
PAN = 0.2
"""Share of the stretch moved per pan."""
ROWS_A_TICK = 3
GRAINS = 32
"""The right edge advances in steps of 1/64 to 1/32 of the stretch in view."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Contents of a chart."""

    title: str
    series: Sequence[Series] = ()
    limits: Sequence[Limit] = ()
    marks: Sequence[Mark] = ()
    x_kind: str = "step"
    "step, tokens or time; selects the labels of the x axis."
    unit: str = ""
    "Unit of the y axis, after the title."
    log: bool = False
    empty: str = "no values yet"
    figure: Callable[[float | None], str] = number_in_words
    "Formats a value for the legend."


class LineChart(DiffWidget):
    """Series over a shared x axis, with axis labels and a legend of the latest values.

    The mouse wheel zooms at the pointer and pans sideways; the legend shows the values under the pointer.
    """

    can_focus = False

    class Moved(Message):
        """The mouse moved the stretch in view."""

        def __init__(self, viewport: Viewport) -> None:
            super().__init__()
            self.viewport = viewport

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self.picture = Picture(title="")
        self.viewport = Viewport()
        self._pointer: int | None = None
        "Column of the pointer inside the plot."
        self._plot_left, self._plot_width = 0, 1

    def show(self, picture: Picture) -> None:
        """Replaces the picture; another x axis is shown whole again."""
        if picture.x_kind != self.picture.x_kind:
            self.viewport = Viewport()
        self.picture = picture
        self.repaint()

    # --- zoom and pan --------------------------------------------------------------------------------------

    def zoom(self, inwards: bool, anchor: float = 1.0) -> None:
        """Zooms in or out; the point at `anchor` (a share of the width) stays in place."""
        extent = self._extent()
        if extent is not None:
            self.look(self.viewport.zoomed(ZOOM if inwards else 1 / ZOOM, *extent, anchor=anchor))

    def pan(self, rightwards: bool) -> None:
        """Pans the stretch in view."""
        extent = self._extent()
        if extent is not None:
            self.look(self.viewport.moved(PAN if rightwards else -PAN, *extent))

    def look(self, viewport: Viewport) -> None:
        """Sets the viewport; Viewport() shows everything."""
        if viewport != self.viewport:
            self.viewport = viewport
            self.repaint()

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        """Zooms in at the pointer; with shift or control, pans left."""
        self._scrolled(event, inwards=True)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        """Zooms out at the pointer; with shift or control, pans right."""
        self._scrolled(event, inwards=False)

    def on_mouse_scroll_left(self, event: MouseScrollLeft) -> None:
        """Pans left."""
        event.stop()
        self._move(lambda: self.pan(rightwards=False))

    def on_mouse_scroll_right(self, event: MouseScrollRight) -> None:
        """Pans right."""
        event.stop()
        self._move(lambda: self.pan(rightwards=True))

    def _scrolled(self, event: MouseScrollUp | MouseScrollDown, *, inwards: bool) -> None:
        event.stop()
        if event.shift or event.ctrl:
            self._move(lambda: self.pan(rightwards=not inwards))
            return
        share = (event.x - self._plot_left) / max(1, self._plot_width - 1)
        self._move(lambda: self.zoom(inwards, min(1.0, max(0.0, share))))

    def _move(self, move: Callable[[], None]) -> None:
        former = self.viewport
        move()
        if self.viewport != former:
            self.post_message(self.Moved(self.viewport))

    def on_mouse_move(self, event: MouseMove) -> None:
        """Shows the values under the pointer in the legend."""
        column = event.x - self._plot_left
        self._point_at(column if 0 <= column < self._plot_width else None)

    def on_leave(self, _: Leave) -> None:
        """Shows the latest values in the legend."""
        self._point_at(None)

    def _point_at(self, column: int | None) -> None:
        if column != self._pointer:
            self._pointer = column
            self.repaint()

    # --- painting ------------------------------------------------------------------------------------------

    def _extent(self) -> tuple[float, float] | None:
        """Returns the first x of all series and a rounded-up last one."""
        places = [one.x for one in self.picture.series if one.x.size]
        if not places:
            return None
        low, high = min(float(x[0]) for x in places), max(float(x[-1]) for x in places)
        span = min(self.viewport.span or high - low, high - low)
        if span <= 0:
            return low, high
        # The axis grows by a little more than the newest point needs. Else every point would move with every step, the
        # picture would flicker, and all of it would have to be sent again.
        grain = 2.0 ** math.floor(math.log2(span / GRAINS))
        return low, math.ceil(high / grain) * grain

    def paint(self, width: int, height: int) -> list[Content]:
        """Paints legend, plot and axes at the given size."""
        if width < 24 or height < 4:
            return [Content("too small"[:width])]
        picture, extent = self.picture, self._extent()
        window = self.viewport.window(*extent) if extent is not None else (0.0, 1.0)
        scale = None
        if extent is not None:
            scale = scale_of(picture.series, picture.limits, window, log=picture.log)
        if scale is None:
            self._plot_width = 1
            return [self._legend(None, width), Content.styled(picture.empty, "$muted")]
        rows = height - 3
        labels = self._y_labels(scale, rows)
        gutter = max((len(label) for label in labels.values()), default=0)
        columns = width - gutter - 2
        self._plot_left, self._plot_width = gutter + 2, columns
        cells = draw(picture.series, picture.limits, window, scale, (columns, rows))
        pointed = self._pointed(window, columns)
        if pointed is not None and self._pointer is not None:
            for cell_row in cells:
                if cell_row[self._pointer][0] == " ":
                    cell_row[self._pointer] = ("┊", "$faint")
        lines = [self._legend(pointed, width)]
        for row, line in enumerate(cells):
            label = labels.get(row, "")
            lines.append(Content.styled(f"{label:>{gutter}} {'┤' if label else '│'}", "$muted").append(joined(line)))
        lines += self._x_axis(gutter, columns, window)
        return lines

    def _pointed(self, window: tuple[float, float], columns: int) -> float | None:
        if self._pointer is None or self._pointer >= columns:
            return None
        return window[0] + (window[1] - window[0]) * self._pointer / max(1, columns - 1)

    def _legend(self, pointed: float | None, width: int) -> Content:
        """Formats the title and each series with its latest value or the value at the pointer; shortens them to fit."""
        title = Content.styled(self.picture.title, "bold")
        unit = Content.styled(f" {self.picture.unit}", "$muted") if self.picture.unit else Content("")
        named, signed = self._values(pointed, names=True), self._values(pointed, names=False)
        legends = (Content.assemble(title, unit, named), title.append(named), title.append(signed))
        return next((legend for legend in legends if legend.cell_length <= width), legends[-1])

    def _values(self, pointed: float | None, *, names: bool) -> Content:
        picture, gap = self.picture, "   " if names else "  "
        found = Content("")
        if pointed is not None:
            at = ticks.place_in_words(picture.x_kind, pointed)
            found = found.append(Content.styled(f"{gap}at {picture.x_kind} {at}", "$muted"))
        entries = [
            (one.marker or one.letter or "━", one.style, one.name, one.latest if pointed is None else one.at(pointed))
            for one in picture.series
            if not one.quiet
        ]
        entries += [("╌", "$warning", limit.name, limit.value) for limit in picture.limits]
        for sign, style, name, value in entries:
            words = f"{name} {picture.figure(value)}".lstrip() if names else picture.figure(value)
            found = found.append(Content.styled(f"{gap}{sign} ", style)).append(words)
        return found

    def _y_labels(self, scale: Scale, rows: int) -> dict[int, str]:
        most = max(3, rows // ROWS_A_TICK)
        made = (ticks.logarithmic if scale.log else ticks.linear)(scale.low, scale.high, most)
        return {scale.row(place, rows): label for place, label in made}

    def _x_axis(self, gutter: int, columns: int, window: tuple[float, float]) -> list[Content]:
        """Draws the x axis with event marks and labels."""
        left, right = window
        span = right - left

        def cell(place: float) -> int:
            return round((place - left) / span * (columns - 1)) if span > 0 else 0

        axis = [("─", "$muted")] * columns
        name = f" {self.picture.x_kind}"
        labels = [" "] * columns
        end = 0
        for place, text in ticks.labeller(self.picture.x_kind)(left, right, max(2, columns // 16)):
            at = cell(place)
            start = min(max(0, at - len(text) // 2), columns - len(text))
            if start >= end and start + len(text) <= columns - len(name) - 1:
                labels[start : start + len(text)] = text
                axis[at] = ("┬", "$muted")
                end = start + len(text) + 2
        labels[columns - len(name) :] = name
        for mark in self.picture.marks:
            if left <= mark.x <= right:
                axis[cell(mark.x)] = (mark.sign, mark.style)
        return [
            Content.styled(" " * gutter + " └", "$muted").append(joined(axis)),
            Content.styled(" " * (gutter + 2) + "".join(labels), "$muted"),
        ]
