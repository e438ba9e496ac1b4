"""Host: what controllers need of the app that they run in. The App is one; a test may be another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from textual.message import Message
    from textual.notifications import SeverityLevel
    from textual.timer import Timer
    from textual.worker import Worker

    from elite_tui.state_part import StatePart


class Host(Protocol):
    """Workers, timers and messages; notices for the person; the way between rooms."""

    @property
    def room(self) -> str:
        """The room on screen."""

    def go(self, name: str) -> None:
        """Enters a room."""

    def leave(self, run_state: str = ...) -> None:
        """Closes the app; `run_state` says what the run on screen does now."""

    def tell(self, part: StatePart) -> None:
        """Tells the screens that a part of the state changed."""

    def notify(
        self,
        message: str,
        *,
        title: str = ...,
        severity: SeverityLevel = ...,
        timeout: float | None = ...,
        markup: bool = ...,
    ) -> None:
        """Shows a notice for a few seconds."""

    def post_message(self, message: Message) -> bool:
        """Queues a message for the app. May be called from any thread."""

    def run_worker(
        self,
        work: Callable[[], Coroutine[None, None, None]],
        name: str | None = ...,
        group: str = ...,
        *,
        exclusive: bool = ...,
    ) -> Worker[None]:
        """Runs a coroutine; an exclusive one ends the others of its group."""

    def set_timer(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls something after so many seconds."""


class Debounce:
    """Calls something once nobody has asked for it for a while: a question while somebody types.

    Args:
        host: Whose timers are used.
        delay: Seconds to wait.
    """

    def __init__(self, host: Host, delay: float) -> None:
        self._host = host
        self._delay = delay
        self._timer: Timer | None = None

    def ask(self, callback: Callable[[], None]) -> None:
        """Calls it after the delay, in place of what was asked for before."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self._host.set_timer(self._delay, callback)
