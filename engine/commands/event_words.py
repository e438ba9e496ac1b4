"""Puts a run's events into lines of safe text, for the displays of `engine train` and `engine attach`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import one_line
from engine.protocol.events import (
    CheckpointSaved,
    CommandAcked,
    EvalCompleted,
    Event,
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    WarningRaised,
)
from engine.quantities import counted, format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.runs.run_directory import RunDirectory


def describe(event: Event) -> str:
    """Formats the event as one line of safe text; "" if it only advances a bar."""
    if isinstance(event, PhaseChanged):
        text = f"{event.phase}: {event.detail}" if event.detail else event.phase
    elif isinstance(event, RunStarted):
        steps = f", {counted(event.total_steps, 'step')}" if event.total_steps else ""
        text = f"model {event.model}, context {event.context:,} tokens{steps}, on {event.device}"
    elif isinstance(event, StepCompleted):
        text = step_numbers(event)
    elif isinstance(event, EvalCompleted):
        text = f"held-out perplexity {number(event.perplexity)} at step {event.step:,}"
        if event.reward_accuracy is not None:
            text += f", {event.reward_accuracy:.0%} of the pairs right, margin {number(event.reward_margin)}"
    elif isinstance(event, CheckpointSaved):
        text = f"checkpoint {event.path}"
    elif isinstance(event, LogLine):
        text = event.text
    elif isinstance(event, WarningRaised):
        text = f"warning: {event.text}" + (f"; {event.hint}" if event.hint else "")
    elif isinstance(event, RecoveryTaken):
        text = f"recovered: {event.what} ({event.why})"
    elif isinstance(event, CommandAcked):
        text = f"{event.command} {'accepted' if event.accepted else 'refused'}" + (
            f": {event.text}" if event.text else ""
        )
    else:
        text = ""
    return one_line(text)


def describe_ending(
    run: RunDirectory, ending: RunFinished | RunFailed, duration: Callable[[float], str] = format_seconds
) -> list[str]:
    """Formats the result as lines of safe text, its time by `duration`."""
    if isinstance(ending, RunFailed):
        last = ending.traceback.strip().splitlines()[-1:] if ending.error == "child-died" else []
        lines = [f"engine: {ending.message}; {ending.hint}", *(f"last line of the log: {line}" for line in last)]
        return [one_line(line) for line in [*lines, f"log                 {run.log_path}"]]
    from engine.evaluation.words import too_few_updates

    before, after = ending.perplexity_before, ending.perplexity_after
    change = f" ({(after / before - 1) * 100:+.1f}%)" if before and after else ""
    lines = [f"{ending.status:<19} {counted(ending.steps, 'step')} in {duration(ending.seconds)}"]
    if before is not None or after is not None:
        lines.append(f"held-out perplexity {number(before)} before, {number(after)} after{change}")
    if before and after and (few := too_few_updates(ending.steps)):
        lines.append(f"{'':<19} {few}")
    if ending.status == "completed":
        lines += _measured(run)
    if ending.adapter:
        lines.append(f"adapter             {run.path / ending.adapter}")
    if ending.status == "stopped":
        lines.append(f"go on with          engine train --resume {run.id}")
    lines.append(f"look again with     elite-tui monitor {run.id}")
    return [one_line(line) for line in lines]


def _measured(run: RunDirectory) -> Iterator[str]:
    """Yields what the evaluation in a run's folder found, with its intervals."""
    import msgspec

    from engine import regular_file
    from engine.evaluation.result import FILE_NAME, evaluation_from_json
    from engine.evaluation.words import change_words, interval_words

    try:
        evaluation = evaluation_from_json(regular_file.read_object(run.path / FILE_NAME))
    except (OSError, ValueError, TypeError, KeyError, msgspec.ValidationError):
        return
    row, rate = evaluation.perplexity, evaluation.completed("parses")
    if row.change_interval is None:
        sure = "too few files for an interval"
    else:
        sure = f"95% interval {interval_words(row.change_interval, '{:+.1%}')}"
    yield f"{'':<19} {row.change:+.1%} over {row.tokens:,} tokens, {sure}"
    if rate is not None:
        yield f"files that parse    {change_words(rate)}"
    if (guessed := evaluation.mark("next name", "guessed")) is not None:
        yield f"names guessed       {change_words(guessed, 'name')}"
    if (names := evaluation.mark("next line", "identifiers")) is not None:
        yield f"names in next lines {change_words(names, 'line')}"
    yield f"report              {run.report_path}"


def step_numbers(event: StepCompleted) -> str:
    """Formats the figures of a step for one line."""
    eta = "" if event.eta_seconds is None else f" · {format_seconds(event.eta_seconds)} left"
    margin = "" if event.reward_margin is None else f"margin {event.reward_margin:,.3f} · "
    return (
        f"step {event.step:,}/{event.total_steps:,} · loss {number(event.loss)} · {margin}"
        f"{event.tokens_per_second:,.0f} tok/s{eta}"
    )


def number(value: float | None) -> str:
    """Formats a loss or a perplexity."""
    return "n/a" if value is None else f"{value:,.3f}"
