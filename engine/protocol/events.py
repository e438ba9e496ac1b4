"""Declares the events of a run.

`seq` of their envelopes (engine.protocol.wire) counts from 0 and rises by one with each event; a reader that sees a gap
reads it from the journal. `StepProgress` may be left out of the journal: it is frequent, and only the newest one
matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """First event of a run, and of each resumption."""

    model: str
    context: int
    "Tokens per window."
    total_steps: int
    first_step: int = 0
    "Steps already done by the run that this one resumes."
    device: str = "cpu"
    pid: int = 0
    engine_version: str = ""
    planned_gpu_bytes: int | None = None
    "Peak that the plan predicts; the gauge shows it."
    planned_host_bytes: int | None = None
    layout: dict[str, Any] | None = None
    "How the plan computes a step (engine.plan.step_layout); None in journals of earlier versions."
    learning_rate: float | None = None
    "Peak learning rate, as configured or by the model's width; None in journals of earlier versions."


@dataclass(frozen=True, kw_only=True)
class PhaseChanged(Event):
    """The run entered a phase, or its next part, which `detail` names. Phases come in the order of `PHASES`."""

    phase: str
    detail: str = ""

    @property
    def begins_attempt(self) -> bool:
        """Whether this is the first event of an attempt."""
        return self.phase == "starting" and not self.detail


PHASES = ("starting", "data", "model", "baseline", "training", "evaluation", "saving", "finished")


@dataclass(frozen=True, kw_only=True)
class StepProgress(Event):
    """Progress inside one step (which may last an hour at long context), or inside another long phase."""

    step: int
    stage: str
    "forward, loss, backward, optimiser; or the unit that a phase counts, such as files, tokens, windows."
    done: int
    total: int
    layer: int | None = None
    tile: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepCompleted(Event):
    """The optimiser made one update."""

    step: int
    "Counts from 1."
    total_steps: int
    epoch: float
    loss: float | None
    "Mean cross-entropy per token, in nats; null if it was not finite."
    lr: float
    grad_norm: float | None
    tokens: int
    "Tokens trained on in this step."
    tokens_per_second: float
    seconds: float = 0.0
    gpu_allocated: int | None = None
    gpu_reserved: int | None = None
    gpu_peak: int | None = None
    host_used: int | None = None
    "Resident bytes of the training process."
    eta_seconds: float | None = None
    reward_margin: float | None = None
    "With training.objective=dpo: mean reward of the chosen answers less that of the rejected ones. `loss` is DPO's."
    reward_accuracy: float | None = None
    "Share of the pairs with a margin above zero."


@dataclass(frozen=True, kw_only=True)
class EvalCompleted(Event):
    """Held-out files were scored."""

    step: int
    "0 is the base model, before any training."
    loss: float | None
    perplexity: float | None
    tokens: int
    seconds: float = 0.0
    preference_loss: float | None = None
    "With training.objective=dpo: mean loss of the held-out pairs; `loss` is that of their chosen answers, per token."
    reward_margin: float | None = None
    reward_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is complete on disk and passed its check."""

    step: int
    path: str
    "Relative to the run directory."
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LogLine(Event):
    """One line for people."""

    level: Literal["debug", "info", "warning", "error"]
    text: str


@dataclass(frozen=True, kw_only=True)
class WarningRaised(Event):
    """A warning for people; the run continues."""

    code: str
    text: str
    hint: str = ""


PAUSED_PREFIX = "paused-"
"""Prefix of warning codes that mean that the run waits, until its next RecoveryTaken or step."""


@dataclass(frozen=True, kw_only=True)
class RecoveryTaken(Event):
    """The engine recovered from a failure."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class CommandAcked(Event):
    """A command was carried out, or refused with a reason."""

    command_id: str
    command: str
    accepted: bool
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class RankReported(Event):
    """Status of one rank, reported every few seconds."""

    rank: int
    step: int
    host: str = ""
    pid: int = 0
    device: str = ""
    seconds: float = 0.0
    "Of its latest update."
    waited_seconds: float = 0.0
    "Spent in collectives since the last report, waiting for other ranks or for the interconnect."
    sent_bytes: int = 0
    "Handed to collectives for gradients since the last report."
    gpu_allocated: int | None = None
    gpu_peak: int | None = None
    host_used: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """Last event of a run that completed or was stopped."""

    status: Literal["completed", "stopped"]
    steps: int
    seconds: float
    "Of all attempts, without the time between them."
    adapter: str | None = None
    "Relative to the run directory."
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    tokens: int = 0
    gpu_peak: int | None = None
    host_peak: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """Last event of a run that failed. `error` is a code of engine.errors."""

    error: str
    message: str
    hint: str
    exit_code: int
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of a newer engine, kept so that an old monitor can still show the rest of the journal."""

    name: str
    body: dict[str, Any]


EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        RunStarted,
        PhaseChanged,
        StepProgress,
        StepCompleted,
        EvalCompleted,
        CheckpointSaved,
        LogLine,
        WarningRaised,
        RecoveryTaken,
        CommandAcked,
        RankReported,
        RunFinished,
        RunFailed,
    )
}
