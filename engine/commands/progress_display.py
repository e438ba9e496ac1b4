"""Shows a run's events as text on stderr, or as JSON lines on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Protocol

from engine.commands.event_words import describe, describe_ending, step_numbers
from engine.commands.plain_display import EVERY_SECONDS, PlainDisplay
from engine.commands.status_line import STREAMS_KEPT, status_line
from engine.errors import one_line
from engine.protocol.events import PhaseChanged, RunFailed, RunFinished, RunStarted, StepCompleted, StepProgress
from engine.protocol.wire import Envelope, encode_event
from engine.runs.desktop import has_desktop, terminal_sequence
from engine.runs.notices import RepeatFilter, notice_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from engine.runs.run_directory import RunDirectory


_LONGEST_DETAIL = 60
"""Characters of a phase's detail beside the bar of a terminal with 100 columns."""


class Display(Protocol):
    """Display of a followed run."""

    def show(self, envelope: Envelope) -> None:
        """Shows an event."""

    def say(self, text: str) -> None:
        """Shows a message of the command itself."""

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Shows the result."""


@contextlib.contextmanager
def open_display(
    *, as_json: bool, plain: bool = False, every: float = EVERY_SECONDS, notify: bool = False
) -> Iterator[Display]:
    """Opens JSON lines; or a live display in a terminal; or plain lines.

    Args:
        as_json: JSON lines on stdout.
        plain: Plain lines in a terminal too.
        every: Seconds between plain lines of steps.
        notify: Let the terminal notify of the run's end and of trouble.
    """
    if as_json:
        yield JsonDisplay()
        return
    alert = TerminalAlert() if notify and sys.stderr.isatty() and not has_desktop(os.environ) else None
    if not _is_live(as_json=as_json, plain=plain):
        yield AlertingDisplay(PlainDisplay(every), alert)
        return
    from rich.console import Console

    live = LiveDisplay(Console(stderr=True))
    with live.progress:
        yield AlertingDisplay(live, alert)


class TerminalAlert:
    """Lets the terminal notify of what happened since this command began."""

    def __init__(self) -> None:
        self._since = time.time()
        self._filter = RepeatFilter()

    def show(self, envelope: Envelope) -> None:
        """Sends the terminal's own sequence for an event that is worth it."""
        notice = notice_of(envelope.event, envelope.run)
        if notice is not None and envelope.time >= self._since and self._filter.passes(notice):
            sys.stderr.write(terminal_sequence(notice, os.environ))
            sys.stderr.flush()


class AlertingDisplay:
    """A display whose terminal notifies too."""

    def __init__(self, display: Display, alert: TerminalAlert | None) -> None:
        self._display, self._alert = display, alert

    def show(self, envelope: Envelope) -> None:
        """Shows an event, and notifies."""
        self._display.show(envelope)
        if self._alert is not None:
            self._alert.show(envelope)

    def say(self, text: str) -> None:
        """See Display."""
        self._display.say(text)

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """See Display."""
        self._display.finish(run, ending)


class JsonDisplay:
    """Prints each event as in the journal, and nothing else."""

    def show(self, envelope: Envelope) -> None:
        """Prints the event's line."""
        print(encode_event(envelope), flush=True)  # noqa: T201

    def say(self, text: str) -> None:
        """Does nothing: the events carry the same information."""

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Does nothing: the last event carries the result."""


@contextlib.contextmanager
def shown_at_work(text: str, *, as_json: bool, plain: bool) -> Iterator[None]:
    """Shows on a live terminal what a command does before its run begins, and removes it afterwards."""
    if not _is_live(as_json=as_json, plain=plain):
        yield
        return
    from rich.console import Console

    with status_line(Console(stderr=True), text):
        yield


def _is_live(*, as_json: bool, plain: bool) -> bool:
    return not (as_json or plain) and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class LiveDisplay:
    """Progress bar with phase, step, loss, tokens/s and the phase's time; permanent lines scroll above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            **STREAMS_KEPT,
        )
        self._task: TaskID = self.progress.add_task("starting", total=None, numbers="")
        self._phase = "starting"
        self._step: StepCompleted | None = None

    def show(self, envelope: Envelope) -> None:
        """Advances the bar, or prints a line above it."""
        event = envelope.event
        if isinstance(event, PhaseChanged):
            self._enter(event)
        elif isinstance(event, RunStarted):
            self._restart(total=event.total_steps or None, completed=event.first_step)
            self.say(describe(event))
        elif isinstance(event, StepCompleted):
            self._step = event
            self._restart(total=event.total_steps, completed=event.step, numbers=step_numbers(event))
        elif isinstance(event, StepProgress):
            self._show_progress(event)
        elif text := describe(event):
            self.say(text)

    def say(self, text: str) -> None:
        """Prints text above the bar, in lines of whole words, so that a path can be copied."""
        console = self.progress.console
        lines = textwrap.wrap(text, console.width, break_long_words=False, break_on_hyphens=False)
        console.print("\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Removes the bar and prints the result."""
        self.progress.update(self._task, visible=False)
        self.progress.stop()
        for line in describe_ending(run, ending):
            self.say(line)

    def _enter(self, event: PhaseChanged) -> None:
        """Begins a phase, or its next part, whose time starts at 0; the stages of training have one clock."""
        before, self._phase = self._phase, one_line(event.phase)
        if self._phase == "training" == before:
            self._restart(total=None)
            return
        doing = "" if self._phase == "training" else one_line(event.detail)
        description = f"{self._phase:<10}"
        self.progress.reset(self._task, total=None, description=description, numbers=doing[:_LONGEST_DETAIL])

    def _restart(self, total: int | None, completed: int = 0, numbers: str = "") -> None:
        self.progress.update(
            self._task, description=f"{self._phase:<10}", total=total, completed=completed, numbers=numbers
        )

    def _show_progress(self, event: StepProgress) -> None:
        text = f"{one_line(event.stage)} {event.done:,}/{event.total:,}"
        if self._phase == "training":
            text = f"{step_numbers(self._step)} · {text}" if self._step else text
            self.progress.update(self._task, numbers=text)
        else:
            self._restart(total=event.total or None, completed=event.done, numbers=text)
