"""Reads from a run's journal how far it has come, over all of its attempts."""

from __future__ import annotations

from collections.abc import Iterable

from engine.protocol import Envelope, PhaseChanged, RecoveryTaken, RunStarted, StepCompleted
from engine.training.state import Progress


def progress_of(events: Iterable[Envelope]) -> Progress:
    """Returns the progress of a run; steps that a resumption has given up do not count."""
    steps: dict[int, tuple[int, float, float]] = {}
    "Tokens, seconds and epoch of each; a million whole events would fill a gigabyte."
    total_steps = 0
    recoveries: list[str] = []
    for envelope in events:
        event = envelope.event
        if isinstance(event, RunStarted):
            steps = {number: step for number, step in steps.items() if number <= event.first_step}
        elif isinstance(event, StepCompleted):
            steps[event.step] = event.tokens, event.seconds, event.epoch
            total_steps = event.total_steps
        elif isinstance(event, RecoveryTaken):
            recoveries.append(f"{event.what}: {event.why}")
    last = max(steps, default=0)
    return Progress(
        step=last,
        total_steps=total_steps if steps else 0,
        epoch=steps[last][2] if steps else 0.0,
        tokens=sum(tokens for tokens, _, _ in steps.values()),
        seconds=sum(seconds for _, seconds, _ in steps.values()),
        recoveries=recoveries,
    )


def seconds_of(events: Iterable[Envelope], now: float) -> float:
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
