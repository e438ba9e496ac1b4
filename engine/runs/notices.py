"""Chooses the events of a run that a person wants to hear of away from the screen, and puts them into words.

The standard library and the protocol only: the training process, the commands and the app all use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engine.errors import one_line
from engine.protocol.events import PAUSED_PREFIX, Event, RecoveryTaken, RunFailed, RunFinished, WarningRaised

Kind = Literal["completed", "stopped", "failed", "recovered", "paused", "stalled"]

ENDINGS: tuple[Kind, ...] = ("completed", "stopped", "failed")
REPEAT_SECONDS = 300.0
"""Seconds until a notice of the same kind is given again: a run may recover at every step."""
_LONGEST = 400
"""Characters of a text."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What happened, as one safe line each."""

    kind: Kind
    title: str
    text: str


def notice_of(event: Event, name: str) -> Notice | None:
    """Returns the notice for an event; None for most events.

    Args:
        event: An event of the run.
        name: Name of the run or of its model, untrusted.
    """
    if isinstance(event, RunFinished):
        return make_notice(event.status, name, _finished(event))
    if isinstance(event, RunFailed):
        return make_notice("failed", name, f"{event.message}; {event.hint}" if event.hint else event.message)
    if isinstance(event, RecoveryTaken):
        return make_notice("recovered", name, f"{event.what} ({event.why})")
    if isinstance(event, WarningRaised) and event.code.startswith(PAUSED_PREFIX):
        return make_notice("paused", name, f"{event.text}; {event.hint}" if event.hint else event.text)
    return None


def make_notice(kind: Kind, name: str, text: str) -> Notice:
    """Makes a notice of untrusted text, cut to a length that every receiver takes."""
    return Notice(kind=kind, title=_short(f"{name} {kind}", 100), text=_short(text, _LONGEST))


def _finished(event: RunFinished) -> str:
    before, after = event.perplexity_before, event.perplexity_after
    steps = f"{event.steps:,} step{'' if event.steps == 1 else 's'}"
    if before is None or after is None:
        return steps
    return f"{steps}, perplexity on held-out files {before:,.4g} before, {after:,.4g} after"


def _short(text: str, most: int) -> str:
    text = one_line(text)
    return text if len(text) <= most else text[: most - 1] + "…"


class RepeatFilter:
    """Drops notices of a kind that was given a short while ago. Endings are never dropped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: dict[Kind, float] = {}

    def passes(self, notice: Notice) -> bool:
        """Tells whether to give a notice, and counts it as given."""
        now = self._clock()
        if notice.kind not in ENDINGS and now - self._given.get(notice.kind, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        self._given[notice.kind] = now
        return True
