"""The losses of a run as its journal tells them, and what past runs of the same model came to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.protocol import Envelope, EvalCompleted, RunStarted, StepCompleted
from engine.runs.journal import JournalReader
from engine.runs.run_index import find_runs

if TYPE_CHECKING:
    from pathlib import Path

    from engine.runs.run_directory import RunDirectory

MOST_PAST_RUNS = 20


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """Losses over tokens trained on, in nats a token; what a rollback undid is left out."""

    training: tuple[tuple[float, float], ...] = ()
    held_out: tuple[tuple[float, float], ...] = ()
    "The first one, at 0, is the base model's."
    total_tokens: float | None = None
    "Trained on at the end, by the steps that are left; None before the first one."


def read_curve(journal: Path) -> RunCurve:
    """The losses in a journal; none where it cannot be read."""
    return curve_of(JournalReader(journal).poll())


def curve_of(events: Iterable[Envelope]) -> RunCurve:
    """The losses in a run's events."""
    steps: dict[int, StepCompleted] = {}
    scores: dict[int, float] = {}
    total_steps = 0
    for envelope in events:
        event = envelope.event
        if isinstance(event, StepCompleted):
            # A step that is done again takes the place of all that came after it the first time.
            steps = {number: step for number, step in steps.items() if number < event.step}
            scores = {number: loss for number, loss in scores.items() if number < event.step}
            steps[event.step] = event
            total_steps = event.total_steps
        elif isinstance(event, EvalCompleted) and event.loss is not None:
            scores[event.step] = event.loss
        elif isinstance(event, RunStarted):
            total_steps = event.total_steps or total_steps
    tokens, at = 0, {0: 0}
    for number in sorted(steps):
        tokens += steps[number].tokens
        at[number] = tokens
    return RunCurve(
        training=tuple((float(at[n]), loss) for n in sorted(steps) if (loss := steps[n].loss) is not None),
        held_out=tuple((float(at[n]), scores[n]) for n in sorted(scores) if n in at),
        total_tokens=tokens / len(steps) * max(total_steps, len(steps)) if steps else None,
    )


def past_ratios(model: str, *, before: str, runs: Iterable[RunDirectory] | None = None) -> list[float]:
    """Last held-out loss over the first one, of completed runs of a model that are older than a run.

    Args:
        model: As the configuration names it.
        before: Id of the run that wants to know; ids begin with their time.
        runs: To look at, newest first; all that this user has by default.
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
