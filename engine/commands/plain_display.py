"""Shows a run as plain lines: for logs, pipes and screen readers.

No line is overwritten, moves the cursor, or says anything by colour or by drawn characters. A line comes only for what
a person wants to hear: phases, evaluations, checkpoints, trouble, the end, and the step every so many seconds.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.commands.event_words import describe, describe_ending, number
from engine.errors import one_line
from engine.protocol.events import LogLine, PhaseChanged, StepCompleted, StepProgress
from engine.protocol.wire import Envelope
from engine.quantities import counted

if TYPE_CHECKING:
    from engine.protocol.events import RunFailed, RunFinished
    from engine.runs.run_directory import RunDirectory

EVERY_SECONDS = 30.0
_SPOKEN = str.maketrans({"·": ",", "→": "to", "×": "x", "–": "to", "…": "..."})
"""What a screen reader skips or names at length, in words."""
_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


class PlainDisplay:
    """Prints one line per event worth hearing.

    Args:
        every: Minimum seconds between lines of steps, and of progress within one.
        clock: Returns seconds.
    """

    def __init__(self, every: float = EVERY_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._progress_said = -every
        self._phase = ""
        self._last = ""

    def show(self, envelope: Envelope) -> None:
        """Prints a line if the event is worth one."""
        event = envelope.event
        if isinstance(event, StepCompleted):
            if self._is_due(at_once=event.step == event.total_steps):
                self.say(_step_words(event))
        elif isinstance(event, StepProgress):
            if self._is_due():
                self.say(self._progress_words(event))
        elif isinstance(event, LogLine) and event.level == "debug":
            return
        elif text := describe(event):
            if isinstance(event, PhaseChanged):
                self._phase = one_line(event.phase)
            self.say(text)

    def say(self, text: str) -> None:
        """Prints a line, unless it is that of before."""
        text = " ".join(text.translate(_SPOKEN).replace(" ,", ",").split(" "))
        if text != self._last:
            self._last = text
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Prints the result."""
        for line in describe_ending(run, ending, spoken_duration):
            self.say(re.sub(r" {2,}", " ", line.lstrip(), count=1))  # the labels of the result are padded

    def _is_due(self, *, at_once: bool = False) -> bool:
        now = self._clock()
        if now - self._progress_said < self._every and not at_once:
            return False
        self._progress_said = now
        return True

    def _progress_words(self, event: StepProgress) -> str:
        within = f"step {event.step:,}" if self._phase == "training" else self._phase
        of = f" of {event.total:,}" if event.total else ""
        return one_line(f"{within}: {event.stage} {event.done:,}{of}")


def _step_words(event: StepCompleted) -> str:
    parts = [
        f"step {event.step:,} of {event.total_steps:,}",
        f"loss {number(event.loss)}",
        *([] if event.reward_margin is None else [f"margin {number(event.reward_margin)}"]),
        f"{event.tokens_per_second:,.0f} tokens a second",
        *([] if event.eta_seconds is None else [f"{spoken_duration(event.eta_seconds)} left"]),
    ]
    return ", ".join(parts)


def spoken_duration(seconds: float) -> str:
    """Formats seconds in whole words with the two largest units: 2 minutes 10 seconds."""
    whole = max(0, round(seconds))
    for index, (unit, size) in enumerate(_UNITS):
        if whole >= size or size == 1:
            parts = [counted(whole // size, unit)]
            if size > 1 and (rest := whole % size // _UNITS[index + 1][1]):
                parts.append(counted(rest, _UNITS[index + 1][0]))
            return " ".join(parts)
    raise AssertionError
