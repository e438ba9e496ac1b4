"""Paints lines of text and sends only changed cells to the terminal.

A plain widget repaints all of itself, while a run watched over SSH changes a few cells of a large chart per second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.style import Style
from textual.content import Content, Span
from textual.geometry import Region
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget


class DiffWidget(Widget):
    """Base of widgets made of lines. Subclasses return them from `paint` and call `repaint` after changes."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._strips: list[Strip] = []
        self._made: dict[tuple[str, tuple[Span, ...]], Strip] = {}
        "Strips of the last painting by content, for the current size and style."
        self._stale = True

    def paint(self, width: int, height: int) -> Sequence[Content]:
        """Returns the lines for a size in cells. Longer ones are cut off."""
        raise NotImplementedError(f"{type(self).__name__} defines no paint")

    @property
    def plain(self) -> str:
        """Painted text at the current size, without styles."""
        return "\n".join(line.plain for line in self.paint(*self.content_size))

    def repaint(self) -> None:
        """Paints again, and refreshes only the differing cells."""
        if not self.is_mounted or self._stale:
            self._stale = True
            self.refresh()
            return
        former, self._strips = self._strips, self._render_strips()
        if len(former) != len(self._strips):
            # The layout changed, and the Resize message is still to come.
            self._stale = True
            self.refresh()
            return
        regions = [
            Region(found[0], y, found[1] - found[0], 1)
            for y, (old, new) in enumerate(zip(former, self._strips, strict=True))
            if (found := _difference(old, new)) is not None
        ]
        if regions:
            self.refresh(*regions)

    def on_resize(self) -> None:
        """Repaints everything at the new size."""
        self._stale = True
        self.refresh()

    def notify_style_update(self) -> None:
        """Repaints everything in the new colours."""
        super().notify_style_update()
        self._stale = True

    def render_line(self, y: int) -> Strip:
        """Returns one painted line."""
        if self._stale:
            self._stale = False
            self._made = {}
            self._strips = self._render_strips()
        # Textual's own painting empties this set; it would grow with every change.
        self._dirty_regions.clear()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.content_size.width, self.rich_style)

    def _render_strips(self) -> list[Strip]:
        width, height = self.content_size
        strips: list[Strip] = []
        former, self._made = self._made, {}
        for line in list(self.paint(width, height))[:height]:
            # Equal text and styles give an equal strip, and most lines do not change.
            known = (line.plain, tuple(line.spans))
            strip = former.get(known)
            if strip is None:
                cut = line.truncate(width, ellipsis=True) if line.cell_length > width else line
                (strip,) = Visual.to_strips(self, cut, width, 1, self.visual_style, pad=True)[:1]
            self._made[known] = strip
            strips.append(strip)
        blank = Strip.blank(width, self.visual_style.rich_style)
        return [*strips, *[blank] * (height - len(strips))]


class Lines(DiffWidget):
    """Lines set from outside, each cut off at the right edge."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._lines: Sequence[Content] = ()

    def show(self, lines: Sequence[Content]) -> None:
        """Replaces the lines."""
        self._lines = lines
        self.repaint()

    def paint(self, width: int, height: int) -> Sequence[Content]:  # noqa: ARG002
        """Returns the lines as set."""
        return self._lines


class Fitted(DiffWidget):
    """Lines generated for the widget's size, again on every resize."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._make: Callable[[int, int], Sequence[Content]] = lambda width, height: ()  # noqa: ARG005

    def show(self, make: Callable[[int, int], Sequence[Content]]) -> None:
        """Replaces the function from columns and rows to lines."""
        self._make = make
        self.repaint()

    def paint(self, width: int, height: int) -> Sequence[Content]:
        """Generates the lines for this size."""
        return self._make(width, height)


def _difference(old: Strip, new: Strip) -> tuple[int, int] | None:
    """Returns the range of differing cells between two lines of equal length, or None."""
    if old == new:
        return None
    before, after = _cells(old), _cells(new)
    if len(before) != len(after):
        return 0, max(len(before), len(after))
    differing = [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    return (differing[0], differing[-1] + 1) if differing else None


def _cells(strip: Strip) -> list[tuple[str, Style | None]]:
    """Returns each cell's content; the second cell of a wide character is empty."""
    cells: list[tuple[str, Style | None]] = []
    for text, style, _ in strip:
        for character in text:
            cells.append((character, style))
            cells += [("", style)] * (cell_len(character) - 1)
    return cells
