"""RunView: what the monitor knows of a run, folded from its events. Pure: the same for live and finished runs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from engine.protocol import (
    CheckpointSaved,
    CommandAcked,
    Envelope,
    EvalCompleted,
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
)

LOG_LINES_KEPT = 5_000


@dataclass(frozen=True)
class LogEntry:
    """One line of the log pane: when, how grave, and untrusted text."""

    time: float
    level: str
    text: str


@dataclass
class RunView:
    """The state of one run as its events tell it."""

    run_id: str = ""
    started: RunStarted | None = None
    started_at: float | None = None
    updated_at: float | None = None
    phase: str = "starting"
    phase_detail: str = ""
    progress: StepProgress | None = None
    "Inside the present step or phase; None when that has just ended."
    step: StepCompleted | None = None
    "The latest completed step."
    losses: list[tuple[float, float | None]] = field(default_factory=list)
    held_out: list[tuple[float, float | None]] = field(default_factory=list)
    first_evaluation: EvalCompleted | None = None
    latest_evaluation: EvalCompleted | None = None
    checkpoint: CheckpointSaved | None = None
    warnings: int = 0
    recoveries: int = 0
    paused: bool = False
    pending: dict[str, str] = field(default_factory=dict)
    "Commands sent and not yet acknowledged: id → name."
    finished: RunFinished | None = None
    failed: RunFailed | None = None
    log: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=LOG_LINES_KEPT))
    log_count: int = 0
    "Lines ever logged; a pane compares it with what it has drawn."

    @property
    def ended(self) -> bool:
        """Whether the run's last event was seen."""
        return self.finished is not None or self.failed is not None

    @property
    def state(self) -> str:
        """One word for the status line: a phase, paused, stopping, or how the run ended."""
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
        """Steps of the whole run, None before it is known."""
        if self.step is not None:
            return self.step.total_steps
        return self.started.total_steps or None if self.started is not None else None

    @property
    def done_steps(self) -> int:
        """Completed steps, those before a resumption included."""
        if self.step is not None:
            return self.step.step
        return self.started.first_step if self.started is not None else 0

    def apply(self, envelope: Envelope) -> None:
        """Folds in one event. Events of a newer engine are kept in the log by name."""
        self.run_id = envelope.run
        self.updated_at = envelope.time
        if self.started_at is None:
            self.started_at = envelope.time
        event = envelope.event
        if isinstance(event, RunStarted):
            self._restart(event)
            self._note(envelope, "info", f"run started: {event.model}, {event.context:,} tokens, {event.device}")
        elif isinstance(event, PhaseChanged):
            self.phase, self.phase_detail, self.progress = event.phase, event.detail, None
            # A phase after the last event: the run was resumed.
            self.finished = self.failed = None
            self._note(envelope, "info", f"{event.phase}: {event.detail}" if event.detail else event.phase)
        elif isinstance(event, StepProgress):
            self.progress = event
        elif isinstance(event, StepCompleted):
            # A step after Pause was accepted: the run went on by itself.
            self.step, self.progress, self.paused = event, None, False
            self.losses.append((event.step, event.loss))
        elif isinstance(event, EvalCompleted):
            self._evaluated(envelope, event)
        else:
            self._apply_rare(envelope)

    def _apply_rare(self, envelope: Envelope) -> None:
        event = envelope.event
        if isinstance(event, LogLine):
            self._note(envelope, event.level, event.text)
        elif isinstance(event, CheckpointSaved):
            self.checkpoint = event
            self._note(envelope, "info", f"checkpoint saved: {event.path}")
        elif isinstance(event, WarningRaised):
            self.warnings += 1
            self._note(envelope, "warning", f"{event.text} ({event.hint})" if event.hint else event.text)
        elif isinstance(event, RecoveryTaken):
            self.recoveries += 1
            self._note(envelope, "warning", f"recovered: {event.what} ({event.why})")
        elif isinstance(event, CommandAcked):
            self._acknowledged(envelope, event)
        elif isinstance(event, RunFinished):
            self.finished, self.progress, self.paused = event, None, False
            self.pending.clear()
            self._note(envelope, "info", f"run {event.status} after {event.steps} steps")
        elif isinstance(event, RunFailed):
            self.failed, self.progress, self.paused = event, None, False
            self.pending.clear()
            self._note(envelope, "error", f"{event.message}; {event.hint}")
            for line in event.traceback.splitlines():
                self._note(envelope, "error", line)
        else:
            self._note(envelope, "debug", f"event {envelope.kind}")

    def _restart(self, event: RunStarted) -> None:
        """A resumption repeats the steps after its checkpoint: what was drawn of them goes."""
        self.started = event
        self.finished = self.failed = self.progress = None
        self.paused = False
        self.losses = [point for point in self.losses if point[0] <= event.first_step]
        self.held_out = [point for point in self.held_out if point[0] <= event.first_step]
        if self.step is not None and self.step.step > event.first_step:
            self.step = None

    def _evaluated(self, envelope: Envelope, event: EvalCompleted) -> None:
        self.held_out.append((event.step, event.loss))
        self.latest_evaluation, self.progress = event, None
        if event.step == 0:
            self.first_evaluation = event
        perplexity = "n/a" if event.perplexity is None else f"{event.perplexity:,.3f}"
        self._note(envelope, "info", f"held-out perplexity after step {event.step}: {perplexity}")

    def _acknowledged(self, envelope: Envelope, event: CommandAcked) -> None:
        self.pending.pop(event.command_id, None)
        if event.accepted and event.command in ("Pause", "Resume"):
            self.paused = event.command == "Pause"
        verdict = "accepted" if event.accepted else "refused"
        text = f"{event.command} {verdict}" + (f": {event.text}" if event.text else "")
        self._note(envelope, "info" if event.accepted else "warning", text)

    def _note(self, envelope: Envelope, level: str, text: str) -> None:
        self.log.append(LogEntry(envelope.time, level, text))
        self.log_count += 1
