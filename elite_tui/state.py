"""AppState: everything the app knows. The App's handlers write it, screens draw from it, workers never touch it."""

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
    """What the screens draw from."""

    draft: Draft
    repository: RemoteData[RepositoryFacts] = field(default_factory=lambda: RemoteData(StatePart.REPOSITORY))
    machine: RemoteData[Machine] = field(default_factory=lambda: RemoteData(StatePart.MACHINE))
    tiers: RemoteData[Plans] = field(default_factory=lambda: RemoteData(StatePart.TIERS))
    what_if: RemoteData[Plans] = field(default_factory=lambda: RemoteData(StatePart.WHAT_IF))
    "The tiers of the machine that was typed beside the tier table."
    models: RemoteData[Sequence[ModelOutlook]] = field(default_factory=lambda: RemoteData(StatePart.MODELS))
    ways: RemoteData[WaysToFit] = field(default_factory=lambda: RemoteData(StatePart.WAYS))
    "What would make the context under the cursor fit."
    preflight: RemoteData[RunConfig] = field(default_factory=lambda: RemoteData(StatePart.PREFLIGHT))
    profile: RemoteData[dict[str, Any]] = field(default_factory=lambda: RemoteData(StatePart.PROFILE))
    "What `engine profile` measured in this session."
    probe: RemoteData[dict[str, Any]] = field(default_factory=lambda: RemoteData(StatePart.PROBE))
    "What `engine probe` measured of a tier, last."
    measuring: str = ""
    "How far the measurement under way is."
    data: RemoteData[DataReport] = field(default_factory=lambda: RemoteData(StatePart.DATA))
    "The dataset of the draft's settings."
    reading: Reading | None = None
    "How far its reading is."
    checks: Checks = field(default_factory=Checks)
    "The pre-flight rows."
    runs: RemoteData[Sequence[RunSummary]] = field(default_factory=lambda: RemoteData(StatePart.RUNS))
    snapshots: deque[Snapshot] = field(default_factory=lambda: deque(maxlen=SNAPSHOTS_KEPT))
    open_runs: OpenRuns = field(default_factory=OpenRuns)
    launching: bool = False
    opening: EliteError | None = None
    "Why the run that was asked for cannot be shown."
    simulated: str | None = None
    "Card named by --simulate."
    comparison: RemoteData[Comparison] = field(default_factory=lambda: RemoteData(StatePart.COMPARISON))
    generation: Generation = field(default_factory=Generation)
    "What the models of the run on screen are asked, and answer."
    report: RemoteData[RunReport] = field(default_factory=lambda: RemoteData(StatePart.REPORT))
    "What the result room shows beside the run's events."
    clock: Callable[[], float] = time.time
    "Seconds since the epoch."

    def problems(self) -> dict[str, Problem]:
        """What is wrong with the draft, by field: its own rules first, then what the checks on disk found."""
        found = self.draft.problems()
        refusal = self.tiers.value.refusal if self.tiers.value is not None else None
        for error in (self.repository.error, self.tiers.error, refusal, self.preflight.error):
            if error is not None and error.field:
                found.setdefault(error.field, Problem(field=error.field, problem=error.message, remedy=error.remedy))
        return found

    @property
    def tokens(self) -> int | None:
        """Tokens of the repository; None where it was not read."""
        return self.repository.value.tokens if self.repository.value is not None else None

    @property
    def shown_plans(self) -> Plans | None:
        """The tiers that the tier room shows: of the what-if machine where there is one."""
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
        """Whether a run is shown that has not ended."""
        return self.run is not None and not self.run.ended

    @property
    def run_controlled(self) -> bool:
        """Whether that run takes commands from here."""
        access = self.open_runs.current.access if self.open_runs.current is not None else None
        return self.run_active and not (access is not None and access.refusal)
