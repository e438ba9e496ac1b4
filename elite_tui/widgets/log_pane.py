"""Shows a run's log as untrusted plain text, never as markup, in full or filtered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from elite_tui.runs.view import LOG_LINES_KEPT, LogEntry, RunView
from elite_tui.widgets.line_pane import LinePane, Row, clock_in_words

MARKS = {"debug": "·", "info": " ", "warning": "!", "error": "✗"}
"Sign of each level, shown beside its colour, lowest first."
LEVELS = tuple(MARKS)


class LogPane(LinePane):
    """Follows a RunView's log."""

    KINDS: ClassVar[frozenset[str]] = frozenset(MARKS)
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "line-pane--gutter",
        "line-pane--found",
        "line-pane--plain",
        *(f"line-pane--{level}" for level in MARKS),
    }

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._run: RunView | None = None
        self.drawn = 0
        "Number of log lines processed so far."
        self.least = LEVELS[0]
        "Minimum level of the lines shown."
        self.shown = 0
        "Number of lines that passed the filters since they were last set."

    def follow(self, run: RunView) -> None:
        """Appends the lines logged since the last call."""
        if run is not self._run or len(self.rows) > 3 * LOG_LINES_KEPT:
            self._run = run
            self._fold_all()
            return
        new = min(run.log_count - self.drawn, len(run.log))
        if new and self.line_width:
            self.drawn = run.log_count
            rows = list(self._rows_of(list(run.log)[-new:]))
            if rows:
                self.extend(rows)

    def look_for(self, text: str, least: str) -> None:
        """Shows only lines that contain a text (ignoring case) and have at least this level."""
        if (text.lower(), least) != (self.highlight, self.least):
            self.highlight, self.least = text.lower(), least
            self._fold_all()

    def on_resize(self) -> None:
        """Wraps the lines to the new width."""
        self._fold_all()

    def _fold_all(self) -> None:
        if self._run is None or not self.line_width:
            return
        self.shown = 0
        self.drawn = self._run.log_count
        self.replace(self._rows_of(self._run.log))

    def _rows_of(self, entries: Iterable[LogEntry]) -> Iterable[Row]:
        least = LEVELS.index(self.least)
        for entry in entries:
            level = entry.level if entry.level in MARKS else "info"
            if LEVELS.index(level) < least or self.highlight not in entry.text.lower():
                continue
            self.shown += 1
            clock = clock_in_words(int(entry.time))
            yield from self.fold(f"{clock} {MARKS[level]} ", level, entry.text)
