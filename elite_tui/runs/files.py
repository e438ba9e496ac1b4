"""Reads a run directory's JSON files leniently; an older or newer engine may have written them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import regular_file

_MOST = 2**63
"""Bytes, seconds, tokens are below it; NaN and infinities are not."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The planner's predictions for a run (plan.json). Missing values are None."""

    step_seconds: float | None = None
    gpu_bytes: float | None = None
    host_bytes: float | None = None
    steps_per_epoch: float | None = None
    steps: int | None = None
    "Steps of the run, as the data give them; None before they are read."
    note: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    "Seconds of each phase besides the steps; empty before the data tell how many steps there are."


def read_json(path: Path) -> Mapping[str, Any] | None:
    """Returns the object in a JSON file, or None if it cannot be read."""
    try:
        return regular_file.read_object(path, bounded=False)
    except (OSError, ValueError):
        return None


def number(data: Mapping[str, Any], *names: str) -> float | None:
    """Returns the first of the named fields that holds a finite number."""
    for name in names:
        value = data.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST:
            return float(value)
    return None


def text(data: Mapping[str, Any], *names: str) -> str:
    """Returns the first of the named fields that holds text, or ""."""
    return next((value for name in names if isinstance(value := data.get(name), str) and value), "")


def read_plan(path: Path) -> PlannedRun | None:
    """Reads plan.json; None before it is written."""
    data = read_json(path)
    if data is None:
        return None
    promise = data.get("promise")
    average, phases = _promised(promise) if isinstance(promise, dict) else _scheduled(data.get("schedule"))
    return PlannedRun(
        # On average over the stages of a run whose windows grow.
        step_seconds=average or number(data, "step_seconds"),
        gpu_bytes=number(data, "gpu_peak_bytes"),
        host_bytes=number(data, "host_peak_bytes"),
        steps_per_epoch=number(data, "steps_per_epoch"),
        steps=None if (steps := number(data, "steps")) is None else int(steps),
        note=text(data, "note"),
        phases={name: seconds for name in phases if (seconds := number(phases, name)) is not None and seconds >= 0},
    )


def _promised(promise: Mapping[str, Any]) -> tuple[float | None, Mapping[str, Any]]:
    """Returns the average seconds of an update, and those of each phase by name."""
    phases = promise.get("phases")
    return number(promise, "step_seconds"), phases if isinstance(phases, dict) else {}


def _scheduled(schedule: object) -> tuple[float | None, Mapping[str, Any]]:
    """Returns the same of a plan's schedule, which stands alone until the data are read."""
    schedule = schedule if isinstance(schedule, dict) else {}
    seconds = updates = 0.0
    for stage in _objects(schedule.get("stages")):
        seconds += number(stage, "seconds") or 0.0
        updates += number(stage, "updates") or 0.0
    phases = {text(part, "name"): part.get("seconds") for part in _objects(schedule.get("around"))}
    return seconds / updates if seconds > 0 and updates > 0 else None, phases


def _objects(items: object) -> Sequence[Mapping[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
