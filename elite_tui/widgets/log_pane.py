"""The log of a run: untrusted lines, shown as they are, never as markup."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import ClassVar

from rich.cells import chop_cells
from rich.segment import Segment
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from elite_tui.figures import printable
from elite_tui.run_view import LogEntry, RunView

MARKS = {"debug": "·", "info": " ", "warning": "!", "error": "✗"}
"The level of a line, beside its colour."
GUTTER = len("00:00:00 ! ")


class LogPane(ScrollView, can_focus=True):
    """Follows a RunView's log, folded to the pane's width. It stays at the end unless scrolled up."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log-pane--time",
        "log-pane--debug",
        "log-pane--info",
        "log-pane--warning",
        "log-pane--error",
    }

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._run: RunView | None = None
        self.drawn = 0
        "Lines of the run's log that are in the pane, or were."
        self._rows: list[tuple[str, str, str]] = []
        "Gutter, level and text of each row on screen."

    def follow(self, run: RunView) -> None:
        """Appends what the run logged since the last call."""
        if run is not self._run:
            self._run = run
            self._fold_all()
            return
        new = min(run.log_count - self.drawn, len(run.log))
        if new:
            self._append(list(run.log)[-new:])

    def on_resize(self) -> None:
        """Folds the lines to the new width."""
        self._fold_all()

    def _fold_all(self) -> None:
        self._rows = []
        if self._run is not None and self.scrollable_content_region.width > GUTTER:
            self._append(self._run.log)

    def _append(self, entries: Iterable[LogEntry]) -> None:
        width = self.scrollable_content_region.width - GUTTER
        if width < 1 or self._run is None:
            return
        at_end = self.is_vertical_scroll_end
        for entry in entries:
            clock = time.strftime("%H:%M:%S", time.localtime(entry.time))
            gutter = f"{clock} {MARKS.get(entry.level, ' ')} "
            for piece in chop_cells(printable(entry.text), width) or [""]:
                self._rows.append((gutter, entry.level, piece))
                gutter = " " * GUTTER
        self.drawn = self._run.log_count
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._rows))
        self.refresh()
        if at_end:
            self.scroll_end(animate=False, immediate=False, x_axis=False)

    def render_line(self, y: int) -> Strip:
        """One row of the pane."""
        row = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        if row >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        gutter, level, text = self._rows[row]
        style = self.get_component_rich_style(f"log-pane--{level if level in MARKS else 'info'}")
        strip = Strip([Segment(gutter, self.get_component_rich_style("log-pane--time")), Segment(text, style)])
        return strip.adjust_cell_length(width, self.rich_style)
