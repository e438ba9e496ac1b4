"""Corrects predictions by what past runs of a machine took, beside what was predicted for them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
    "Seconds of each phase (engine.protocol.events.PHASES); of a checkpoint, and of a scoring between updates."
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
