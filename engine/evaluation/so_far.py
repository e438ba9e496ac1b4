"""Reads from a run's journal how far it has come, over all of its attempts."""

from __future__ import annotations

from collections.abc import Sequence

from engine.protocol import Envelope, PhaseChanged, RecoveryTaken, RunStarted, StepCompleted
from engine.training.state import Progress


def progress_of(events: Sequence[Envelope]) -> Progress:
    """Returns the progress of a run; steps that a resumption has given up do not count."""
    steps: dict[int, StepCompleted] = {}
    for envelope in events:
        event = envelope.event
        if isinstance(event, RunStarted):
            steps = {number: step for number, step in steps.items() if number <= event.first_step}
        elif isinstance(event, StepCompleted):
            steps[event.step] = event
    last = steps[max(steps)] if steps else None
    return Progress(
        step=last.step if last else 0,
        total_steps=last.total_steps if last else 0,
        epoch=last.epoch if last else 0.0,
        tokens=sum(step.tokens for step in steps.values()),
        seconds=sum(step.seconds for step in steps.values()),
        recoveries=[f"{e.event.what}: {e.event.why}" for e in events if isinstance(e.event, RecoveryTaken)],
    )


def seconds_of(events: Sequence[Envelope], now: float) -> float:
    """Returns the seconds of all training processes of a run, without the time between its attempts.

    Args:
        events: Its journal; the last attempt is under way.
        now: The present time, in seconds since the epoch.
    """
    total = 0.0
    began = last = None
    for envelope in events:
        event = envelope.event
        if began is None or last is None or (isinstance(event, PhaseChanged) and event.phase == "starting"):
            total += 0.0 if began is None or last is None else max(0.0, last - began)
            began = envelope.time
        last = envelope.time
    return total if began is None else total + max(0.0, now - began)
