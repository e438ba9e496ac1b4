"""Lists a run's notable events: checkpoints, recoveries, and warnings with remedies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from elite_tui.runs.view import EVENTS_KEPT, RunEvent, RunView
from elite_tui.widgets.line_pane import LinePane, Row, clock_in_words

SIGNS = {
    "checkpoint": "▪",
    "evaluation": "◆",
    "warning": "!",
    "recovery": "↻",
    "command": "›",
    "phase": "·",
    "end": "■",
}
"Sign of each kind of event, here and on the charts."


class EventList(LinePane):
    """Follows a RunView's events. A remedy stands below its event."""

    KINDS: ClassVar[frozenset[str]] = frozenset({"checkpoint", "evaluation", "warning", "recovery", "error", "remedy"})
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "line-pane--gutter",
        "line-pane--found",
        "line-pane--plain",
        *(f"line-pane--{kind}" for kind in sorted(KINDS)),
    }

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._run: RunView | None = None
        self._drawn = 0

    def follow(self, run: RunView) -> None:
        """Appends the events since the last call."""
        if run is not self._run or len(self.rows) > 6 * EVENTS_KEPT:
            self._run = run
            self._fold_all()
            return
        new = min(run.event_count - self._drawn, len(run.events))
        if new and self.line_width:
            self._drawn = run.event_count
            self.extend(self._rows_of(list(run.events)[-new:]))

    def on_resize(self) -> None:
        """Wraps the lines to the new width."""
        self._fold_all()

    def _fold_all(self) -> None:
        if self._run is not None and self.line_width:
            self._drawn = self._run.event_count
            self.replace(self._rows_of(self._run.events))

    def _rows_of(self, events: Iterable[RunEvent]) -> Iterable[Row]:
        for one in events:
            clock = clock_in_words(int(one.time))
            gutter = f"{clock} {SIGNS.get(one.kind, '·')} "
            failed = one.kind == "end" and bool(one.remedy)
            yield from self.fold(gutter, "error" if failed else one.kind, one.text)
            if one.remedy:
                yield from self.fold(" " * (len(gutter) - 2) + "→ ", "remedy", one.remedy)
