"""Reads a run's status and its line in the table of runs from the ends of its journal and from its process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from engine.config import model_name
from engine.errors import EliteError
from engine.protocol.events import (
    PAUSED_PREFIX,
    CommandAcked,
    EvalCompleted,
    Event,
    PhaseChanged,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
)
from engine.protocol.wire import Envelope
from engine.runs import process_record
from engine.runs.journal import read_ends

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.runs.process_record import ProcessRecord

RunStatus = Literal["starting", "running", "paused", "completed", "stopped", "failed", "died"]

ACTIVE: tuple[RunStatus, ...] = ("starting", "running", "paused")
"""Statuses in which a process is training."""

_END_BYTES = 1 << 18
_START_GRACE_S = 30.0
"""Seconds within which a run directory without a process record counts as being started."""


class RunFiles(Protocol):
    """Files of a run that a summary reads (engine.runs.run_directory.RunDirectory)."""

    @property
    def id(self) -> str:
        """Name of the run."""

    @property
    def path(self) -> Path:
        """Folder of the run."""

    @property
    def config_path(self) -> Path:
        """Its configuration."""

    @property
    def journal_path(self) -> Path:
        """Its events."""

    @property
    def process_path(self) -> Path:
        """Record of its training process."""

    def load_config(self) -> RunConfig:
        """Reads the configuration."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One line of `engine runs`. Unknown values are None."""

    id: str
    path: Path
    status: RunStatus
    model: str
    model_name: str
    context: int | None
    step: int
    total_steps: int | None
    loss: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    started: float | None
    "Seconds since the epoch."
    updated: float | None
    phase: str = ""
    eta_seconds: float | None = None
    "The run's own estimate of the time left, as of `updated`."


_E = TypeVar("_E", bound=Event)
_ENDS_AND_BEGINNINGS = (RunFinished, RunFailed, RunStarted, PhaseChanged)


@dataclass(frozen=True)
class _Observation:
    alive: bool
    record: ProcessRecord | None
    head: list[Envelope]
    tail: list[Envelope]


def read_status(run: RunFiles) -> RunStatus:
    """Reads the run's status. A journal that cannot be read counts as empty."""
    return _status(run, _observe(run))


def read_summary(run: RunFiles) -> RunSummary:
    """Reads the run's line in the table."""
    seen = _observe(run)
    head, tail = seen.head, seen.tail
    events = [*head, *tail]
    started = _last(events, RunStarted)
    step = _last(tail, StepCompleted)
    finished = _last(tail, RunFinished)
    before = next((e for e in _of(events, EvalCompleted) if e.step == 0), None)
    after = next((e for e in reversed(_of(tail, EvalCompleted)) if e.step > 0), None)
    phase = _last(tail, PhaseChanged)
    model, model_name = _names(run)
    return RunSummary(
        id=run.id,
        path=run.path,
        status=_status(run, seen),
        model=model,
        model_name=model_name,
        context=started.context if started else None,
        step=max(step.step if step else 0, finished.steps if finished else 0),
        total_steps=step.total_steps if step else started.total_steps if started else None,
        loss=step.loss if step else None,
        perplexity_before=before.perplexity if before else finished.perplexity_before if finished else None,
        perplexity_after=finished.perplexity_after if finished else after.perplexity if after else None,
        started=head[0].time if head else None,
        updated=tail[-1].time if tail else None,
        phase=phase.phase if phase else "",
        eta_seconds=_time_left(tail),
    )


def _time_left(tail: list[Envelope]) -> float | None:
    """Returns the estimate of the attempt's newest step; one that an earlier attempt made says nothing."""
    for envelope in reversed(tail):
        event = envelope.event
        if isinstance(event, RunStarted) or (isinstance(event, PhaseChanged) and event.phase == "starting"):
            return None
        if isinstance(event, StepCompleted):
            passed = tail[-1].time - envelope.time
            return None if event.eta_seconds is None else max(0.0, event.eta_seconds - passed)
    return None


def _observe(run: RunFiles) -> _Observation:
    # Reads the process first, so that a run that ends in between is seen with its last event.
    record = process_record.read_record(run.process_path)
    alive = record is not None and process_record.is_alive(run.process_path, record)
    try:
        head, tail = read_ends(run.journal_path, _END_BYTES)
    except OSError:
        head, tail = [], []
    return _Observation(alive, record, head, tail)


def _status(run: RunFiles, seen: _Observation) -> RunStatus:
    first = seen.record.first_seq if seen.record else 0
    attempt = [envelope.event for envelope in seen.tail if envelope.seq >= first]
    # An attempt that began later has no end: its record of the process may have been lost.
    last = next((e for e in reversed(attempt) if isinstance(e, _ENDS_AND_BEGINNINGS)), None)
    ending = last if isinstance(last, (RunFinished, RunFailed)) else None
    if isinstance(ending, RunFinished):
        return ending.status
    if isinstance(ending, RunFailed):
        return "failed"
    if not seen.alive:
        return "starting" if seen.record is None and _is_new(run) else "died"
    if _is_paused(attempt):
        return "paused"
    return "running" if any(_shows_work(event) for event in attempt) else "starting"


def _is_paused(events: Sequence[Event]) -> bool:
    for event in reversed(events):
        if isinstance(event, CommandAcked) and event.accepted and event.command in ("Pause", "Resume", "Stop"):
            return event.command == "Pause"
        if isinstance(event, WarningRaised) and event.code.startswith(PAUSED_PREFIX):
            return True
        if isinstance(event, (StepCompleted, RecoveryTaken)):
            return False
    return False


def _shows_work(event: Event) -> bool:
    if isinstance(event, PhaseChanged):
        return event.phase != "starting"
    return isinstance(event, (RunStarted, StepProgress, StepCompleted, EvalCompleted))


def _is_new(run: RunFiles) -> bool:
    try:
        return time.time() - run.config_path.stat().st_mtime < _START_GRACE_S
    except OSError:
        return False


def _names(run: RunFiles) -> tuple[str, str]:
    try:
        config = run.load_config()
    except EliteError:
        # A run of a newer version or with a damaged configuration is still listed, under its folder's name.
        return "", run.id
    return config.model.name, model_name(config)


def _of(envelopes: Iterable[Envelope], kind: type[_E]) -> list[_E]:
    return [e.event for e in envelopes if isinstance(e.event, kind)]


def _last(envelopes: Sequence[Envelope], kind: type[_E]) -> _E | None:
    return next((e.event for e in reversed(envelopes) if isinstance(e.event, kind)), None)
