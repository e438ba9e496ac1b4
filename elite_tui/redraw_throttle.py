"""Limits redraws of a run to four a second, and to none while the terminal is behind."""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual.app import App

    from elite_tui.state_part import StatePart

SHORTEST = 0.25
"""Seconds between two redraws."""
Later = Callable[[float, Callable[[], None]], None]


def terminal_takes_more() -> bool:
    """Returns whether the terminal accepts more output. Checks standard error, which Textual writes to."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(select.select([], [sys.__stderr__.fileno()], [], 0)[1])  # type: ignore[union-attr]
    return True


class RedrawThrottle:
    """Batches changes and draws each changed part at most once per interval.

    Over a slow link, frames would otherwise queue up, each outdated on arrival, and a key press would be answered
    after all of them.

    Args:
        app: The app whose screens are drawn.
        draw: Draws a part of the state.
        later: Calls a function after so many seconds.
    """

    def __init__(self, app: App[Any], draw: Callable[[StatePart], None], later: Later | None = None) -> None:
        self._app = app
        self._draw = draw
        self._later = later or self._call_later
        self._owed: dict[StatePart, None] = {}
        self._drawn_at = 0.0
        self._armed = False

    def ask(self, part: StatePart) -> None:
        """Draws a part of the state, now or at the end of the interval."""
        self._owed[part] = None
        if not self._armed:
            self._settle()

    def _settle(self) -> None:
        self._armed = False
        wait = self._drawn_at + SHORTEST - time.monotonic()
        if wait <= 0 and not self._app.is_headless and not terminal_takes_more():
            wait = SHORTEST
        if wait > 0:
            self._armed = True
            self._later(wait, self._settle)
            return
        self._drawn_at = time.monotonic()
        owed, self._owed = self._owed, {}
        for part in owed:
            self._draw(part)

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        # Not with a Textual timer: one that is due before its task first reads the clock never fires, and all later
        # redraws would wait for it. Events arrive as often as redraws may happen, so such short waits occur.
        asyncio.get_running_loop().call_later(seconds, self._app.call_next, callback)
