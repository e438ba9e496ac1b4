"""Holds the app's whole state. The App's handlers write it, screens draw from it, workers never touch it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from elite_tui.generation.answers import Generation
from elite_tui.remote_data import RemoteData
from elite_tui.runs.open_runs import OpenRuns
from elite_tui.state_part import StatePart
from elite_tui.wizard.checks import Checks
from engine.config import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from elite_tui.runs.comparison import Comparison
    from elite_tui.runs.report import RunReport
    from elite_tui.runs.view import RunView
    from elite_tui.wizard.draft import Draft
    from elite_tui.wizard.facts import Reading, RepositoryFacts
    from elite_tui.wizard.plans import Plans
    from elite_tui.wizard.remedies import ModelOutlook, WaysToFit
    from engine.config import RunConfig
    from engine.data.report import DataReport
    from engine.errors import EliteError
    from engine.hardware.machine import Machine
    from engine.hardware.telemetry import Snapshot
    from engine.runs.run_summary import RunSummary

SNAPSHOTS_KEPT = 120
"Two minutes of history at one sample a second."


@dataclass
class AppState:
    """State from which the screens draw."""

    draft: Draft
    repository: RemoteData[RepositoryFacts] = field(default_factory=lambda: RemoteData(StatePart.REPOSITORY))
    machine: RemoteData[Machine] = field(default_factory=lambda: RemoteData(StatePart.MACHINE))
    tiers: RemoteData[Plans] = field(default_factory=lambda: RemoteData(StatePart.TIERS))
    what_if: RemoteData[Plans] = field(default_factory=lambda: RemoteData(StatePart.WHAT_IF))
    "Tiers of the what-if machine."
    models: RemoteData[Sequence[ModelOutlook]] = field(default_factory=lambda: RemoteData(StatePart.MODELS))
    planned_models: dict[str, ModelOutlook] = field(default_factory=dict)
    "By name, those of them that are planned while the others are not yet."
    ways: RemoteData[WaysToFit] = field(default_factory=lambda: RemoteData(StatePart.WAYS))
    "Changes with which the context under the cursor fits."
    preflight: RemoteData[RunConfig] = field(default_factory=lambda: RemoteData(StatePart.PREFLIGHT))
    profile: RemoteData[dict[str, Any]] = field(default_factory=lambda: RemoteData(StatePart.PROFILE))
    "Results of `engine profile` in this session."
    probe: RemoteData[dict[str, Any]] = field(default_factory=lambda: RemoteData(StatePart.PROBE))
    "The latest results of `engine probe`."
    measuring: str = ""
    "Progress of the current measurement."
    data: RemoteData[DataReport] = field(default_factory=lambda: RemoteData(StatePart.DATA))
    "Dataset of the draft's settings."
    reading: Reading | None = None
    "Progress of building the dataset."
    checks: Checks = field(default_factory=Checks)
    "Pre-flight rows."
    runs: RemoteData[Sequence[RunSummary]] = field(default_factory=lambda: RemoteData(StatePart.RUNS))
    snapshots: deque[Snapshot] = field(default_factory=lambda: deque(maxlen=SNAPSHOTS_KEPT))
    open_runs: OpenRuns = field(default_factory=OpenRuns)
    launching: bool = False
    opening: EliteError | None = None
    "Error of the run that could not be opened."
    simulated: str | None = None
    "GPU named by --simulate."
    comparison: RemoteData[Comparison] = field(default_factory=lambda: RemoteData(StatePart.COMPARISON))
    generation: Generation = field(default_factory=Generation)
    "Requests to the models of the run on screen, and their answers."
    report: RemoteData[RunReport] = field(default_factory=lambda: RemoteData(StatePart.REPORT))
    "Results read from the run's folder, which the result screen shows beside the run's events."
    clock: Callable[[], float] = time.time
    "Seconds since the epoch."

    def problems(self) -> dict[str, Problem]:
        """Returns the draft's problems by field, from its own rules first, then from the checks on disk."""
        found = self.draft.problems()
        refusal = self.tiers.value.refusal if self.tiers.value is not None else None
        for error in (self.repository.error, self.tiers.error, refusal, self.preflight.error):
            if error is not None and error.field:
                found.setdefault(error.field, Problem(field=error.field, problem=error.message, remedy=error.remedy))
        return found

    @property
    def tokens(self) -> int | None:
        """Tokens of the repository; None if it was not read."""
        return self.repository.value.tokens if self.repository.value is not None else None

    @property
    def shown_plans(self) -> Plans | None:
        """Tiers that the tier screen shows: the what-if machine's if there is one."""
        return self.what_if.value or self.tiers.value

    @property
    def run(self) -> RunView | None:
        """The run on screen."""
        return self.open_runs.current.view if self.open_runs.current is not None else None

    @property
    def run_path(self) -> Path | None:
        """Folder of the run on screen."""
        return self.open_runs.current.path if self.open_runs.current is not None else None

    @property
    def run_active(self) -> bool:
        """Whether the run on screen has not ended."""
        return self.run is not None and not self.run.ended

    @property
    def run_controlled(self) -> bool:
        """Whether the run on screen is active and takes commands from here."""
        access = self.open_runs.current.access if self.open_runs.current is not None else None
        return self.run_active and not (access is not None and access.refusal)
