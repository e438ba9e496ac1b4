"""Folds a run's events into the monitor's view of it. Pure, and the same for live and finished runs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from elite_tui.format.figures import printable
from elite_tui.runs.eta import Eta
from elite_tui.runs.history import RunHistory
from engine.protocol.events import (
    CheckpointSaved,
    CommandAcked,
    EvalCompleted,
    LogLine,
    PhaseChanged,
    RankReported,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
)
from engine.protocol.wire import Envelope
from engine.quantities import counted

LOG_LINES_KEPT = 5_000
EVENTS_KEPT = 1_000
LONGEST_TEXT = 10_000
"""Characters of a line that are kept; the journal holds the rest."""

PRESUMED = ("child-died", "run-moved")
"""Errors of a synthetic RunFailed, made by the reader when process or folder are gone; later events take it back."""


@dataclass(frozen=True)
class LogEntry:
    """One line of the log pane: time, level, and untrusted text."""

    time: float
    level: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """A notable event: a checkpoint, a recovery, a warning. Its text is untrusted."""

    time: float
    step: int
    kind: str
    "checkpoint, recovery, warning, evaluation, command, phase or end."
    text: str
    remedy: str = ""


@dataclass
class RunView:
    """State of one run, folded from its events."""

    run_id: str = ""
    started: RunStarted | None = None
    started_at: float | None = None
    updated_at: float | None = None
    phase: str = "starting"
    phase_detail: str = ""
    phase_began: float | None = None
    part_began: float | None = None
    "Time at which the current part of the phase began, by the training machine's clock."
    progress: StepProgress | None = None
    "Progress of the current step or phase; None once it has ended."
    stages: list[str] = field(default_factory=list)
    "Stages entered in the current step or phase, in order."
    step: StepCompleted | None = None
    "The latest completed step."
    history: RunHistory = field(default_factory=RunHistory)
    eta: Eta = field(default_factory=Eta)
    first_evaluation: EvalCompleted | None = None
    latest_evaluation: EvalCompleted | None = None
    checkpoint: CheckpointSaved | None = None
    warnings: int = 0
    recoveries: int = 0
    paused: bool = False
    ranks: dict[int, RankReported] = field(default_factory=dict)
    "The latest report of each rank of a multi-process run."
    pending: dict[str, str] = field(default_factory=dict)
    "Commands sent and not yet acknowledged, as id → name."
    finished: RunFinished | None = None
    failed: RunFailed | None = None
    log: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=LOG_LINES_KEPT))
    log_count: int = 0
    "Total lines logged; a pane compares it with the number that it has drawn."
    events: deque[RunEvent] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    event_count: int = 0

    @property
    def ended(self) -> bool:
        """Whether the run's last event was seen."""
        return self.finished is not None or self.failed is not None

    @property
    def resumable(self) -> bool:
        """Whether the run ended before its last step."""
        return self.ended and (self.finished is None or self.finished.status == "stopped")

    @property
    def state(self) -> str:
        """One word for the status line: a phase, paused, stopping, or the outcome."""
        if self.failed is not None:
            return "failed"
        if self.finished is not None:
            return self.finished.status
        if "Stop" in self.pending.values():
            return "stopping"
        if self.paused:
            return "paused"
        return self.phase

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None before it is known."""
        if self.step is not None:
            return self.step.total_steps
        return self.started.total_steps or None if self.started is not None else None

    @property
    def done_steps(self) -> int:
        """Completed steps, including those before a resumption."""
        if self.step is not None:
            return self.step.step
        return self.started.first_step if self.started is not None else 0

    def apply(self, envelope: Envelope) -> None:
        """Folds in one event. Events of a newer engine are logged by name."""
        self.run_id = envelope.run
        self.updated_at = envelope.time
        if self.started_at is None:
            self.started_at = envelope.time
            self.history.begin(envelope.time)
        event = envelope.event
        if self.failed is not None and self.failed.error in PRESUMED:
            # The process was alive; a mount or a copy was behind.
            self.failed = None
        if isinstance(event, RunStarted):
            self._restart(envelope, event)
        elif isinstance(event, PhaseChanged):
            self._enter(envelope, event)
        elif isinstance(event, StepProgress):
            self.progress = event
            if not self.stages or self.stages[-1] != event.stage:
                self.stages.append(event.stage)
        elif isinstance(event, StepCompleted):
            # A step after an accepted Pause: the run has continued by itself.
            self.step, self.paused = event, False
            self._leave_stage()
            self.eta.completed(event, envelope.time)
            self.history.step_completed(event, envelope.time)
        elif isinstance(event, EvalCompleted):
            self._evaluated(envelope, event)
        else:
            self._apply_rare(envelope)

    def _apply_rare(self, envelope: Envelope) -> None:
        event = envelope.event
        if isinstance(event, LogLine):
            self._log(envelope, event.level, event.text)
        elif isinstance(event, CheckpointSaved):
            self.checkpoint = event
            # Saving and evaluation happen between two steps and are no part of the next one.
            self.eta.begin(envelope.time)
            self._tell(envelope, "checkpoint", f"checkpoint saved: {event.path}")
        elif isinstance(event, WarningRaised):
            self.warnings += 1
            self._tell(envelope, "warning", event.text, event.hint)
        elif isinstance(event, RecoveryTaken):
            self.recoveries += 1
            self._tell(envelope, "recovery", f"recovered: {event.what} ({event.why})")
        elif isinstance(event, RankReported):
            self.ranks[event.rank] = event
        elif isinstance(event, CommandAcked):
            self._acknowledged(envelope, event)
        elif isinstance(event, RunFinished):
            self.finished = event
            self._end()
            self._tell(envelope, "end", f"run {event.status} after {counted(event.steps, 'step')}")
        elif isinstance(event, RunFailed):
            self.failed = event
            self._end()
            self._tell(envelope, "end", event.message, event.hint)
            for line in event.traceback.splitlines():
                self._log(envelope, "error", line)
        else:
            self._log(envelope, "debug", f"event {envelope.kind}")

    def _restart(self, envelope: Envelope, event: RunStarted) -> None:
        """Handles a start or resumption; drops the data of steps after the checkpoint, which will be repeated."""
        resumed = self.started is not None
        self.ranks.clear()
        self.started = event
        self.finished = self.failed = None
        self.paused = False
        self._leave_stage()
        self.history.go_on(event.first_step, envelope.time)
        if self.step is not None and self.step.step > event.first_step:
            self.step = None
        what = f"resumed after step {event.first_step:,}" if resumed or event.first_step else "run started"
        self._tell(envelope, "phase", f"{what}: {event.model}, {event.context:,} tokens, {event.device}")

    def _enter(self, envelope: Envelope, event: PhaseChanged) -> None:
        phase = printable(event.phase)
        if self.phase_began is None or phase != self.phase or event.begins_attempt:
            self.phase_began = envelope.time
        if event.begins_attempt:  # the one before may have been killed while it was paused
            self.paused = False
            self.history.begin(envelope.time)
        self.phase, self.phase_detail, self.part_began = phase, event.detail, envelope.time
        self._leave_stage()
        self.eta.begin(envelope.time)
        # A phase after the last event means that the run was resumed.
        self.finished = self.failed = None
        self._tell(envelope, "phase", f"{event.phase}: {event.detail}" if event.detail else event.phase)

    def _leave_stage(self) -> None:
        self.progress = None
        self.stages = []

    def _end(self) -> None:
        self._leave_stage()
        self.paused = False
        self.pending.clear()

    def _evaluated(self, envelope: Envelope, event: EvalCompleted) -> None:
        self.history.evaluated(event, envelope.time)
        self.latest_evaluation = event
        self._leave_stage()
        self.eta.begin(envelope.time)
        if event.step == 0:
            self.first_evaluation = event
        perplexity = "n/a" if event.perplexity is None else f"{event.perplexity:,.3f}"
        self._tell(envelope, "evaluation", f"held-out perplexity after step {event.step:,}: {perplexity}")

    def _acknowledged(self, envelope: Envelope, event: CommandAcked) -> None:
        self.pending.pop(event.command_id, None)
        if event.accepted and event.command in ("Pause", "Resume"):
            self.paused = event.command == "Pause"
            self.eta.begin(envelope.time)
        verdict = "accepted" if event.accepted else "refused"
        text = f"{event.command} {verdict}" + (f": {event.text}" if event.text else "")
        self._tell(envelope, "command" if event.accepted else "warning", text)

    def _tell(self, envelope: Envelope, kind: str, text: str, remedy: str = "") -> None:
        """Adds an entry to the list of events and to the log."""
        text, remedy = _shortened(text), _shortened(remedy)
        self.events.append(RunEvent(time=envelope.time, step=self.done_steps, kind=kind, text=text, remedy=remedy))
        self.event_count += 1
        level = "error" if self.failed is not None else "warning" if kind in ("warning", "recovery") else "info"
        self._log(envelope, level, f"{text} ({remedy})" if remedy else text)

    def _log(self, envelope: Envelope, level: str, text: str) -> None:
        self.log.append(LogEntry(envelope.time, level, _shortened(text)))
        self.log_count += 1


def _shortened(text: str) -> str:
    return (
        text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … {len(text) - LONGEST_TEXT:,} more characters"
    )
