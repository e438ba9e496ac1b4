"""Reads a run's losses from its journal, and the loss ratios of past runs of the same model."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.protocol.events import EvalCompleted, RunStarted, StepCompleted
from engine.protocol.wire import Envelope
from engine.runs.journal import read_events
from engine.runs.run_index import find_runs

if TYPE_CHECKING:
    from pathlib import Path

    from engine.runs.run_directory import RunDirectory

MOST_PAST_RUNS = 20


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """Losses in nats per token over tokens trained on; steps that a rollback discarded are left out."""

    training: tuple[tuple[float, float], ...] = ()
    held_out: tuple[tuple[float, float], ...] = ()
    "Points (tokens, loss); the first, at 0, is the base model's."
    total_tokens: float | None = None
    "Projected tokens at the end of the run, from the remaining steps; None before the first step."


def read_curve(journal: Path) -> RunCurve:
    """Reads the losses in a journal; an unreadable journal has none."""
    return curve_of(read_events(journal))


def curve_of(events: Iterable[Envelope]) -> RunCurve:
    """Extracts the losses from a run's events."""
    steps: dict[int, tuple[int, float | None]] = {}
    "Tokens and loss of each; a million whole events would fill a gigabyte."
    scores: dict[int, float] = {}
    step_numbers: list[int] = []
    score_numbers: list[int] = []
    total_steps = 0
    for envelope in events:
        event = envelope.event
        if isinstance(event, StepCompleted):
            # After a rollback, a repeated step discards all later ones.
            _discard(steps, step_numbers, event.step)
            _discard(scores, score_numbers, event.step)
            steps[event.step] = event.tokens, event.loss
            step_numbers.append(event.step)
            total_steps = event.total_steps
        elif isinstance(event, EvalCompleted) and event.loss is not None:
            if event.step not in scores:
                bisect.insort(score_numbers, event.step)
            scores[event.step] = event.loss
        elif isinstance(event, RunStarted):
            total_steps = event.total_steps or total_steps
    tokens, at = 0, {0: 0}
    for number in sorted(steps):
        tokens += steps[number][0]
        at[number] = tokens
    return RunCurve(
        training=tuple((float(at[n]), loss) for n in sorted(steps) if (loss := steps[n][1]) is not None),
        held_out=tuple((float(at[n]), scores[n]) for n in sorted(scores) if n in at),
        total_tokens=tokens / len(steps) * max(total_steps, len(steps)) if steps else None,
    )


def _discard(found: dict[int, Any], numbers: list[int], first: int) -> None:
    """Drops what has the number `first` or a later one; `numbers` are the keys in order."""
    while numbers and numbers[-1] >= first:
        del found[numbers.pop()]


def past_ratios(model: str, *, before: str, runs: Iterable[RunDirectory] | None = None) -> list[float]:
    """Returns last over first held-out loss, of completed runs of a model that are older than a run.

    Args:
        model: The model, as the configuration names it.
        before: Id of the current run; ids begin with their time.
        runs: Runs to search, newest first; all of this user's by default.
    """
    if runs is None:
        runs = find_runs()
    found = []
    for run in runs:
        if run.id >= before:
            continue
        summary = run.summary()
        first, last = summary.perplexity_before, summary.perplexity_after
        if summary.model == model and summary.status == "completed" and first and last and min(first, last) > 1:
            found.append(math.log(last) / math.log(first))
        if len(found) == MOST_PAST_RUNS:
            break
    return found
