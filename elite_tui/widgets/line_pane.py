"""Shows many lines of untrusted text, wrapped to the pane's width; draws only the visible ones."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from textual.binding import Binding
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from elite_tui.format.figures import printable

if TYPE_CHECKING:
    from textual.binding import BindingType


@functools.lru_cache(maxsize=4096)
def clock_in_words(second: int) -> str:
    """Formats a second since 1970 as local time of day. Thousands of lines are drawn at once."""
    return time.strftime("%H:%M:%S", time.localtime(second))


_MOST_A_CELL = 4
"""Characters of a cell that are measured at once; accents take none."""


@dataclass(frozen=True)
class Row:
    """One row on screen: a gutter, then text in the colour of its kind."""

    gutter: str
    kind: str
    text: str


class LinePane(ScrollView, can_focus=True, inherit_bindings=False):
    """Follows its end unless scrolled up. Lines wrap, so left and right are not bound."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, action, show=False)
        for key, action in (
            ("up", "scroll_up"),
            ("down", "scroll_down"),
            ("pageup", "page_up"),
            ("pagedown", "page_down"),
            ("home", "scroll_home"),
            ("end", "scroll_end"),
        )
    ]
    KINDS: ClassVar[frozenset[str]] = frozenset()
    "Kinds of rows with their own component class, `line-pane--<kind>`."

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self.rows: list[Row] = []
        self.highlight = ""
        "Text to mark wherever it occurs, in lower case."
        self._pinned = True
        "Whether the end stays in view when rows are added or the size changes."

    @property
    def line_width(self) -> int:
        """Cells of a row; 0 before the first layout."""
        return max(0, self.scrollable_content_region.width)

    def fold(self, gutter: str, kind: str, text: str) -> Iterable[Row]:
        """Wraps a line to rows; the gutter of all but the first is blank."""
        free = max(1, self.line_width - len(gutter))
        rest, start = printable(text), 0
        while (length := _first_row(rest, start, free)) < len(rest) - start:
            # At a word's end, unless that would leave half of the row blank.
            space = -1 if rest.startswith(" ", start + length) else rest.rfind(" ", start, start + length) - start
            length = space if space > length // 2 else length
            yield Row(gutter, kind, rest[start : start + length])
            gutter, start = " " * len(gutter), start + length
            start += rest.startswith(" ", start)
        yield Row(gutter, kind, rest[start:])

    def replace(self, rows: Iterable[Row]) -> None:
        """Replaces all rows."""
        self.rows = list(rows)
        self._settle()

    def extend(self, rows: Iterable[Row]) -> None:
        """Appends rows."""
        self.rows.extend(rows)
        self._settle()

    def _settle(self) -> None:
        self.virtual_size = Size(self.line_width, len(self.rows))
        self.refresh()
        if self._pinned:
            self.scroll_end(animate=False, immediate=True, x_axis=False)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Stops following the end on scrolling up, and resumes once scrolled down to it."""
        super().watch_scroll_y(old_value, new_value)
        self._pinned = self.is_vertical_scroll_end or (self._pinned and new_value > old_value)

    def render_line(self, y: int) -> Strip:
        """Renders one row of the pane."""
        place, width = y + self.scroll_offset.y, self.line_width
        if place >= len(self.rows):
            return Strip.blank(width, self.rich_style)
        row = self.rows[place]
        style = self.get_component_rich_style(f"line-pane--{row.kind if row.kind in self.KINDS else 'plain'}")
        segments = [Segment(row.gutter, self.get_component_rich_style("line-pane--gutter"))]
        text, found = row.text, _find(row.text, self.highlight)
        marked = self.get_component_rich_style("line-pane--found")
        end = 0
        for start in found:
            segments += [
                Segment(text[end:start], style),
                Segment(text[start : start + len(self.highlight)], style + marked),
            ]
            end = start + len(self.highlight)
        segments.append(Segment(text[end:], style))
        return Strip(segment for segment in segments if segment.text).adjust_cell_length(width, self.rich_style)


def _first_row(text: str, start: int, width: int) -> int:
    """Returns how many characters from `start` on fit into a row; at least one, where there is one."""
    # The next few alone are measured: to measure the whole rest for each row would take the square of a line's length.
    head = text[start : start + _MOST_A_CELL * width]
    if len(head) <= width and (head.isascii() or cell_len(head) <= width):
        return len(head)
    return len(next((piece for piece in chop_cells(head, width) if piece), head))


def _find(text: str, wanted: str) -> list[int]:
    """Finds the positions of a lower-case text, ignoring case."""
    places: list[int] = []
    lowered = text.lower()
    if not wanted or len(lowered) != len(text):
        return places
    place = lowered.find(wanted)
    while place >= 0:
        places.append(place)
        place = lowered.find(wanted, place + len(wanted))
    return places
