"""DiffWidget: lines of text of which only the cells that changed are sent to the terminal.

A plain widget repaints all of itself. A run that is watched over SSH changes a few cells of a large chart a second.
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
    """Subclasses say what their lines are (`paint`), and call `repaint` when that may have changed."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._strips: list[Strip] = []
        self._made: dict[tuple[str, tuple[Span, ...]], Strip] = {}
        "The strips of the last painting by what they say, for the present size and style."
        self._stale = True

    def paint(self, width: int, height: int) -> Sequence[Content]:
        """The lines, for so many cells across and down. Longer ones are cut off."""
        raise NotImplementedError

    @property
    def plain(self) -> str:
        """What is painted at the present size, without styles."""
        return "\n".join(line.plain for line in self.paint(*self.content_size))

    def repaint(self) -> None:
        """Paints again, and asks for the cells that differ to be drawn."""
        if not self.is_mounted or self._stale:
            self._stale = True
            self.refresh()
            return
        former, self._strips = self._strips, self._render_strips()
        if len(former) != len(self._strips):
            # Laid out anew, and the message that says so has not come yet.
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
        """Other places for everything."""
        self._stale = True
        self.refresh()

    def notify_style_update(self) -> None:
        """Other colours for everything."""
        super().notify_style_update()
        self._stale = True

    def render_line(self, y: int) -> Strip:
        """One painted line."""
        if self._stale:
            self._stale = False
            self._made = {}
            self._strips = self._render_strips()
        # Textual's own painting empties this; it would grow with every change.
        self._dirty_regions.clear()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.content_size.width, self.rich_style)

    def _render_strips(self) -> list[Strip]:
        width, height = self.content_size
        strips: list[Strip] = []
        former, self._made = self._made, {}
        for line in list(self.paint(width, height))[:height]:
            # The same words in the same styles are the same strip: most lines stay as they are.
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
    """Lines that are set from outside, each cut off at the right edge."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._lines: Sequence[Content] = ()

    def show(self, lines: Sequence[Content]) -> None:
        """Replaces the lines."""
        self._lines = lines
        self.repaint()

    def paint(self, width: int, height: int) -> Sequence[Content]:  # noqa: ARG002
        """The lines as they are."""
        return self._lines


class Fitted(DiffWidget):
    """Lines that are made for the widget's size, whenever that changes."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._make: Callable[[int, int], Sequence[Content]] = lambda width, height: ()  # noqa: ARG005

    def show(self, make: Callable[[int, int], Sequence[Content]]) -> None:
        """Replaces what makes the lines of columns and rows."""
        self._make = make
        self.repaint()

    def paint(self, width: int, height: int) -> Sequence[Content]:
        """The lines for this size."""
        return self._make(width, height)


def _difference(old: Strip, new: Strip) -> tuple[int, int] | None:
    """First cell that differs between two lines of one length, and the one after the last; None where none does."""
    if old == new:
        return None
    before, after = _cells(old), _cells(new)
    if len(before) != len(after):
        return 0, max(len(before), len(after))
    differing = [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    return (differing[0], differing[-1] + 1) if differing else None


def _cells(strip: Strip) -> list[tuple[str, Style | None]]:
    """What each cell shows; the second one of a wide character shows nothing of its own."""
    cells: list[tuple[str, Style | None]] = []
    for text, style, _ in strip:
        for character in text:
            cells.append((character, style))
            cells += [("", style)] * (cell_len(character) - 1)
    return cells
