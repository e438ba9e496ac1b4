"""Shows a run's events as text on stderr, or as JSON lines on stdout."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Protocol

from engine.errors import one_line
from engine.protocol import (
    CheckpointSaved,
    CommandAcked,
    Envelope,
    EvalCompleted,
    Event,
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
    encode_event,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from engine.runs.run_directory import RunDirectory

_PLAIN_INTERVAL_S = 5.0
"""Minimum seconds between lines of steps without a terminal."""


class Display(Protocol):
    """Display of a followed run."""

    def show(self, envelope: Envelope) -> None:
        """Shows an event."""

    def say(self, text: str) -> None:
        """Shows a message of the command itself."""

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Shows the result."""


@contextlib.contextmanager
def open_display(*, as_json: bool) -> Iterator[Display]:
    """Opens JSON lines; or a live display where stderr is a terminal; or plain lines."""
    if as_json:
        yield JsonDisplay()
        return
    if not sys.stderr.isatty():
        yield LineDisplay()
        return
    from rich.console import Console

    live = LiveDisplay(Console(stderr=True))
    with live.progress:
        yield live


class JsonDisplay:
    """Prints each event as in the journal, and nothing else."""

    def show(self, envelope: Envelope) -> None:
        """Prints the event's line."""
        print(encode_event(envelope), flush=True)  # noqa: T201

    def say(self, text: str) -> None:
        """Does nothing: the events carry the same information."""

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Does nothing: the last event carries the result."""


class LineDisplay:
    """Prints one line per event, for logs and pipes."""

    def __init__(self) -> None:
        self._steps_shown = -_PLAIN_INTERVAL_S

    def show(self, envelope: Envelope) -> None:
        """Prints a line; lines of steps are throttled."""
        event = envelope.event
        if isinstance(event, StepCompleted):
            now = time.monotonic()
            if now - self._steps_shown < _PLAIN_INTERVAL_S and event.step < event.total_steps:
                return
            self._steps_shown = now
        if text := describe(event):
            self.say(text)

    def say(self, text: str) -> None:
        """Prints a line."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Prints the result."""
        for line in describe_ending(run, ending):
            self.say(line)


class LiveDisplay:
    """Progress bar with phase, step, loss, tokens/s and remaining time; permanent lines scroll above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID = self.progress.add_task("starting", total=None, numbers="")
        self._phase = "starting"
        self._step: StepCompleted | None = None

    def show(self, envelope: Envelope) -> None:
        """Advances the bar, or prints a line above it."""
        event = envelope.event
        if isinstance(event, PhaseChanged):
            self._phase = one_line(event.phase)
            self._restart(total=None)
        elif isinstance(event, RunStarted):
            self._restart(total=event.total_steps or None, completed=event.first_step)
            self.say(describe(event))
        elif isinstance(event, StepCompleted):
            self._step = event
            self._restart(total=event.total_steps, completed=event.step, numbers=_numbers(event))
        elif isinstance(event, StepProgress):
            self._show_progress(event)
        elif text := describe(event):
            self.say(text)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self, run: RunDirectory, ending: RunFinished | RunFailed) -> None:
        """Removes the bar and prints the result."""
        self.progress.update(self._task, visible=False)
        self.progress.stop()
        for line in describe_ending(run, ending):
            self.say(line)

    def _restart(self, total: int | None, completed: int = 0, numbers: str = "") -> None:
        self.progress.update(
            self._task, description=f"{self._phase:<10}", total=total, completed=completed, numbers=numbers
        )

    def _show_progress(self, event: StepProgress) -> None:
        text = f"{one_line(event.stage)} {event.done:,}/{event.total:,}"
        if self._phase == "training":
            text = f"{_numbers(self._step)} · {text}" if self._step else text
            self.progress.update(self._task, numbers=text)
        else:
            self._restart(total=event.total or None, completed=event.done, numbers=text)


def describe(event: Event) -> str:
    """Formats the event as one line of safe text; "" if it only advances a bar."""
    if isinstance(event, PhaseChanged):
        text = f"{event.phase}: {event.detail}" if event.detail else event.phase
    elif isinstance(event, RunStarted):
        steps = f", {event.total_steps:,} steps" if event.total_steps else ""
        text = f"model {event.model}, context {event.context:,} tokens{steps}, on {event.device}"
    elif isinstance(event, StepCompleted):
        text = _numbers(event)
    elif isinstance(event, EvalCompleted):
        text = f"held-out perplexity {_number(event.perplexity)} at step {event.step:,}"
        if event.reward_accuracy is not None:
            text += f", {event.reward_accuracy:.0%} of the pairs right, margin {_number(event.reward_margin)}"
    elif isinstance(event, CheckpointSaved):
        text = f"checkpoint {event.path}"
    elif isinstance(event, LogLine):
        text = event.text
    elif isinstance(event, WarningRaised):
        text = f"warning: {event.text}" + (f"; {event.hint}" if event.hint else "")
    elif isinstance(event, RecoveryTaken):
        text = f"recovered: {event.what} ({event.why})"
    elif isinstance(event, CommandAcked):
        text = f"{event.command} {'done' if event.accepted else 'refused'} {event.text}".strip()
    else:
        text = ""
    return one_line(text)


def describe_ending(run: RunDirectory, ending: RunFinished | RunFailed) -> list[str]:
    """Formats the result as lines of safe text."""
    if isinstance(ending, RunFailed):
        last = ending.traceback.strip().splitlines()[-1:] if ending.error == "child-died" else []
        lines = [f"engine: {ending.message}; {ending.hint}", *(f"last line of the log: {line}" for line in last)]
        return [one_line(line) for line in [*lines, f"log                 {run.log_path}"]]
    from engine.evaluation.words import too_few_updates

    before, after = ending.perplexity_before, ending.perplexity_after
    change = f" ({(after / before - 1) * 100:+.1f}%)" if before and after else ""
    lines = [
        f"{ending.status:<19} {ending.steps:,} steps in {duration(ending.seconds)}",
        f"held-out perplexity {_number(before)} before, {_number(after)} after{change}",
    ]
    if before and after and (few := too_few_updates(ending.steps)):
        lines.append(f"{'':<19} {few}")
    if ending.adapter:
        lines.append(f"adapter             {run.path / ending.adapter}")
    if ending.status == "stopped":
        lines.append(f"go on with          engine train --resume {run.id}")
    lines.append(f"look again with     elite-tui monitor {run.id}")
    return [one_line(line) for line in lines]


def duration(seconds: float) -> str:
    """Formats seconds as 59s, 1m 59s, 1h 59m or 2d 3h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def _numbers(event: StepCompleted) -> str:
    eta = "" if event.eta_seconds is None else f" · {duration(event.eta_seconds)} left"
    margin = "" if event.reward_margin is None else f"margin {event.reward_margin:,.3f} · "
    return (
        f"step {event.step:,}/{event.total_steps:,} · loss {_number(event.loss)} · {margin}"
        f"{event.tokens_per_second:,.0f} tok/s{eta}"
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.3f}"
