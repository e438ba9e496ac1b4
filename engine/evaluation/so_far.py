"""Reads from a run's journal how far it has come, over all of its attempts."""

from __future__ import annotations

from collections.abc import Iterable

from engine.protocol.events import PhaseChanged, RecoveryTaken, RunStarted, StepCompleted
from engine.protocol.wire import Envelope
from engine.training.state import Progress


def progress_of(events: Iterable[Envelope]) -> Progress:
    """Returns the progress of a run; steps that a rollback or a resumption has given up do not count.

    As in the checkpoints, the seconds of a rollback's steps remain, while a resumption has none of later steps.
    """
    steps: dict[int, tuple[int, float, float]] = {}
    "Tokens, seconds and epoch of each, in order; a million whole events would fill a gigabyte."
    total_steps = 0
    recoveries: list[str] = []
    for envelope in events:
        event = envelope.event
        if isinstance(event, RunStarted):
            _give_up(steps, event.first_step + 1)
        elif isinstance(event, StepCompleted):
            spent = event.seconds + _give_up(steps, event.step)
            steps[event.step] = event.tokens, spent, event.epoch
            total_steps = event.total_steps
        elif isinstance(event, RecoveryTaken):
            recoveries.append(f"{event.what}: {event.why}")
    last = next(reversed(steps), 0)
    return Progress(
        step=last,
        total_steps=total_steps if steps else 0,
        epoch=steps[last][2] if steps else 0.0,
        tokens=sum(tokens for tokens, _, _ in steps.values()),
        seconds=sum(seconds for _, seconds, _ in steps.values()),
        recoveries=recoveries,
    )


def _give_up(steps: dict[int, tuple[int, float, float]], first: int) -> float:
    """Drops the step `first` and later ones, and returns their seconds."""
    seconds = 0.0
    while steps and next(reversed(steps)) >= first:
        seconds += steps.popitem()[1][1]
    return seconds


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
        if began is None or last is None or (isinstance(event, PhaseChanged) and event.begins_attempt):
            total += 0.0 if began is None or last is None else max(0.0, last - began)
            began = envelope.time
        last = envelope.time
    return total if began is None else total + max(0.0, now - began)
