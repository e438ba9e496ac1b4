"""Declares the interface between the controllers and their app: the App, or a stub in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from textual.message import Message
    from textual.notifications import SeverityLevel
    from textual.timer import Timer
    from textual.worker import Worker

    from elite_tui.state_part import StatePart
    from engine.runs.notices import Notice


class Host(Protocol):
    """Workers, timers, messages, notices and navigation between screens."""

    @property
    def screen_name(self) -> str:
        """Name of the current screen."""

    def go(self, name: str) -> None:
        """Switches to a screen."""

    def leave(self, run_state: str = ...) -> None:
        """Closes the app; `run_state` describes the run on screen."""

    def tell(self, part: StatePart) -> None:
        """Notifies the screens that a part of the state changed."""

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

    def alert(self, notice: Notice) -> None:
        """Notifies a person who looks elsewhere."""

    def post_message(self, message: Message) -> bool:
        """Queues a message for the app. Thread-safe."""

    def run_worker(
        self,
        work: Callable[[], Coroutine[None, None, None]],
        name: str | None = ...,
        group: str = ...,
        *,
        exclusive: bool = ...,
    ) -> Worker[None]:
        """Runs a coroutine; an exclusive one cancels the others of its group."""

    def set_timer(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls a function after `delay` seconds."""


class Debounce:
    """Delays a call until nobody has asked for it for a while, such as a request while the user types.

    Args:
        host: Provides the timers.
        delay: Seconds to wait.
    """

    def __init__(self, host: Host, delay: float) -> None:
        self._host = host
        self._delay = delay
        self._timer: Timer | None = None

    def ask(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after the delay, in place of any earlier one."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self._host.set_timer(self._delay, callback)
