"""Notifies a person of a run's end and of trouble, from the training process: no monitor has to be open."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.launch.webhook import WebhookError, body_of, find_url, post
from engine.protocol.events import (
    PAUSED_PREFIX,
    CommandAcked,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    WarningRaised,
)
from engine.protocol.wire import Envelope
from engine.runs.desktop import has_desktop, show_on_desktop
from engine.runs.notices import ENDINGS, Notice, RepeatFilter, make_notice, notice_of

if TYPE_CHECKING:
    from engine.config import NotifySection

_WAITING = 32
"""Notices that wait for a slow receiver; further ones are dropped."""
_LOOK_SECONDS = 5.0
_TRIES = 2
_AGAIN_SECONDS = 1.0
_CLOSE_SECONDS = 10.0
"""Seconds that the end of a run waits for its last notice."""


class Notifier:
    """Delivers notices in a thread of its own, so that no receiver delays or ends training.

    Args:
        settings: What to do.
        name: Name of the model.
        report: Called once, in the thread, with the reason why a notice could not be delivered.
        clock: Returns seconds; those of a suspended machine do not count.
    """

    def __init__(
        self,
        settings: NotifySection,
        name: str,
        *,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._name, self._report, self._clock = settings, name, report, clock
        self._filter = RepeatFilter(clock)
        self._queue: queue.Queue[tuple[Notice, dict[str, str | int | None]] | None] = queue.Queue(_WAITING)
        self._facts: dict[str, str | int | None] = {"run": "", "model": name, "step": None, "total_steps": None}
        self._heard = clock()
        self._waits = self._ended = self._stalled = self._told = False
        self._closing = threading.Event()
        self._url = ""
        self._desktop = settings.desktop and has_desktop(os.environ)
        try:
            self._url = find_url(settings.webhook)
        except WebhookError as error:
            self._tell(error)
        self._thread: threading.Thread | None = None
        if self._url or self._desktop:
            self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)
            self._thread.start()

    def hear(self, envelope: Envelope) -> None:
        """Takes note of an event. Neither blocks nor raises."""
        event = envelope.event
        self._heard, self._stalled = self._clock(), False
        self._facts["run"] = envelope.run
        if isinstance(event, RunStarted):
            self._facts["total_steps"] = event.total_steps or None
        elif isinstance(event, StepCompleted):
            self._facts.update(step=event.step, total_steps=event.total_steps)
            self._waits = False
        elif isinstance(event, RecoveryTaken):
            self._waits = False
        elif isinstance(event, CommandAcked) and event.accepted and event.command in ("Pause", "Resume", "Stop"):
            self._waits = event.command == "Pause"
        elif isinstance(event, WarningRaised) and event.code.startswith(PAUSED_PREFIX):
            self._waits = True
        elif isinstance(event, (RunFinished, RunFailed)):
            self._ended = True
        notice = notice_of(event, self._name)
        if notice is not None:
            self._give(notice)

    def close(self) -> None:
        """Waits for the notices that are under way, for ten seconds at most."""
        self._closing.set()
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            self._thread.join(_CLOSE_SECONDS)

    def _give(self, notice: Notice) -> None:
        if self._thread is not None and self._filter.passes(notice):
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait((notice, dict(self._facts)))

    def _work(self) -> None:
        while True:
            try:
                waiting = self._queue.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if self._closing.is_set():
                    return
                self._look()
                continue
            if waiting is None:
                return
            self._deliver(*waiting)

    def _look(self) -> None:
        """Notices a run that has shown no sign of work for longer than any part of a step takes."""
        silent = self._clock() - self._heard
        limit = 60.0 * self._settings.stalled_minutes
        if not limit or silent < limit or self._waits or self._ended or self._stalled:
            return
        self._stalled = True
        text = f"no sign of work for {silent / 60:,.0f} minutes; its process is alive: see its log"
        self._give(make_notice("stalled", self._name, text))

    def _deliver(self, notice: Notice, facts: dict[str, str | int | None]) -> None:
        if self._desktop:
            show_on_desktop(notice)
        if not self._url:
            return
        body = body_of(notice, facts)
        for left in reversed(range(_TRIES if notice.kind in ENDINGS else 1)):
            try:
                post(self._url, body)
            except WebhookError as error:
                if left:
                    time.sleep(_AGAIN_SECONDS)
                else:
                    self._tell(error)
            except Exception as error:  # a fault here must not be one of the run
                self._tell(WebhookError(type(error).__name__))
                return
            else:
                return

    def _tell(self, error: WebhookError) -> None:
        if not self._told:
            self._told = True
            with contextlib.suppress(Exception):
                self._report(str(error))
