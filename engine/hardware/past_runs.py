"""What past runs of this machine took, beside what was predicted for them, so that later predictions learn from it.

A list in the user's cache, one file per machine as for measurements (engine.hardware.measured_files).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.hardware.measured_files import fingerprint, folder
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.hardware.machine import Machine

KEPT = 100
"""Latest runs in the file."""
_ASKED = 5
"""Latest runs whose median corrects a prediction: one run beside other work does not count."""
_LEAST, _MOST = 0.1, 10.0
"""Bounds of a correction."""


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """Measured over modelled figures of one completed run. Modelled means before any correction."""

    run: str
    model: str
    steps: Mapping[str, float] = field(default_factory=dict)
    "Seconds of updates, by `engine.hardware.measured.correction_key`."
    phases: Mapping[str, float] = field(default_factory=dict)
    "Seconds of each phase (engine.protocol.PHASES)."
    host: float | None = None
    "Peak of host memory."
    gpu: float | None = None
    "Peak of GPU memory."


@dataclass(frozen=True)
class PastRuns:
    """Past runs, oldest first."""

    runs: tuple[PastRun, ...]

    def step_factors(self) -> dict[str, float]:
        """Returns the corrections of updates' seconds, by `correction_key`."""
        keys = {key for run in self.runs for key in run.steps}
        found = {key: _median(run.steps[key] for run in self.runs if key in run.steps) for key in sorted(keys)}
        return {key: factor for key, factor in found.items() if factor is not None}

    def phase_factor(self, model: str, phase: str) -> float | None:
        """Returns the correction of a phase's seconds; None where no run of the model had the phase."""
        return _median(run.phases[phase] for run in self.runs if run.model == model and phase in run.phases)

    def host_factor(self, model: str) -> float | None:
        """Returns the correction of the host memory's peak; None where no run of the model told it."""
        return _median(run.host for run in self.runs if run.model == model and run.host is not None)


def _median(ratios: Iterable[float]) -> float | None:
    latest = list(ratios)[-_ASKED:]
    return min(max(statistics.median(latest), _LEAST), _MOST) if latest else None


def load(machine: Machine) -> PastRuns | None:
    """Loads this machine's past runs; None if there are none, or the file is invalid."""
    try:
        found = msgspec.json.decode(_path(machine).read_bytes(), type=list[PastRun])
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return PastRuns(tuple(found)) if found else None


def add(machine: Machine, run: PastRun) -> None:
    """Adds a run to the file, in place of an earlier record of the same run.

    Raises:
        OSError: the cache cannot be written.
    """
    before = load(machine)
    others = [past for past in (before.runs if before else ()) if past.run != run.run]
    path = _path(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode([*others, run][-KEPT:]), indent=1).decode()
    replace_text(path, text)


def _path(machine: Machine) -> Path:
    return folder() / f"{fingerprint(machine)}.runs.json"
