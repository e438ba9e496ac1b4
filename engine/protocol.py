"""Events and commands, the only messages that cross the process boundary.

Standard library only, so that any process can read a journal without importing the engine's dependencies.
An event travels in an `Envelope` and is written as one JSON object on one line::

    {"schema": 1, "run": "20260101-120000-demo-3f2a", "seq": 7, "time": 1767268800.25, "kind": "...", ...}

Every number is finite or null: JSON has no NaN, and a chart must be able to tell "no value" from 0.
`seq` counts from 0 and rises by one with each event; a reader that sees a gap reads it from the journal.
`StepProgress` may be left out of the journal (it is frequent, and only the newest one matters).
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Union

SCHEMA = 1
"""Raised when an event or command loses or redefines a field, never for a new field with a default."""


class ProtocolError(ValueError):
    """A line that is not an event or command of this schema. The message says what is wrong with it."""


# --- events ------------------------------------------------------------------------------------------------


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

# --- commands ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Command:
    """Base of all commands. The CommandAcked event repeats `id`."""

    id: str


@dataclass(frozen=True, kw_only=True)
class Stop(Command):
    """Ends the run after the current tile or step, with a checkpoint unless `save` is false."""

    save: bool = True


@dataclass(frozen=True, kw_only=True)
class Pause(Command):
    """Pauses the run, with all its memory held, until Resume or Stop."""


@dataclass(frozen=True, kw_only=True)
class Resume(Command):
    """Continues after Pause."""


@dataclass(frozen=True, kw_only=True)
class SaveNow(Command):
    """Writes a checkpoint after the current step."""


@dataclass(frozen=True, kw_only=True)
class EvaluateNow(Command):
    """Scores the held-out files after the current step."""


COMMANDS: dict[str, type[Command]] = {kind.__name__: kind for kind in (Stop, Pause, Resume, SaveNow, EvaluateNow)}

# --- the wire ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """An event with its place in the run."""

    run: str
    seq: int
    time: float
    "Seconds since the epoch, on the training machine's clock."
    event: Event
    schema: int = SCHEMA

    HEADER: ClassVar[tuple[str, ...]] = ("schema", "run", "seq", "time", "kind")

    @property
    def kind(self) -> str:
        """Name of the event's type."""
        return self.event.name if isinstance(self.event, UnknownEvent) else type(self.event).__name__


def encode_event(envelope: Envelope) -> str:
    """Encodes an envelope as one line of JSON, without the newline. Values that are not finite become null."""
    head = {
        "schema": envelope.schema,
        "run": envelope.run,
        "seq": envelope.seq,
        "time": envelope.time,
        "kind": envelope.kind,
    }
    body = envelope.event.body if isinstance(envelope.event, UnknownEvent) else _body(envelope.event)
    return _dump({**head, **body})


def decode_event(line: str | bytes) -> Envelope:
    """Decodes one line of a journal.

    Raises:
        ProtocolError: the line is not JSON, or a field is missing or of the wrong type.
    """
    data = _load(line)
    schema, run, seq, time = (data.pop(name, None) for name in ("schema", "run", "seq", "time"))
    kind = data.pop("kind", None)
    if not (_is(schema, int) and _is(run, str) and _is(seq, int) and _is(time, float) and _is(kind, str)):
        raise ProtocolError("an event needs schema, run, seq, time and kind")
    if schema > SCHEMA:
        raise ProtocolError(f"schema {schema} is newer than this program's {SCHEMA}")
    if seq < 0 or not 0 <= time <= _LAST_TIME:
        raise ProtocolError(f"event {seq} at {time!r} is of no time")
    cls = EVENTS.get(kind)
    event = UnknownEvent(name=kind, body=data) if cls is None else _build(cls, data)
    return Envelope(run=run, seq=seq, time=float(time), event=event, schema=schema)


def encode_command(command: Command) -> str:
    """Encodes a command as one line of JSON, without the newline."""
    return _dump({"schema": SCHEMA, "command": type(command).__name__, **_body(command)})


def decode_command(line: str | bytes) -> Command:
    """Decodes a command from one line.

    Raises:
        ProtocolError: not JSON, not a known command, or a field is missing or of the wrong type.
    """
    data = _load(line)
    data.pop("schema", None)
    name = data.pop("command", None)
    cls = COMMANDS.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ProtocolError(f"unknown command {name!r}; known: {', '.join(COMMANDS)}")
    return _build(cls, data)


def _body(value: Event | Command) -> dict[str, Any]:
    return {f.name: _finite(getattr(value, f.name)) for f in fields(value)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _load(line: str | bytes) -> dict[str, Any]:
    try:
        data = _DECODER.decode(line if isinstance(line, str) else line.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ProtocolError("not a JSON object")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)

T = typing.TypeVar("T")
_MOST = 2**63
"Numbers of events are below it: bytes, tokens, losses. An optional one beyond it counts as absent, such as the "
"perplexity of a run that diverged; so no reader's sums and products leave what a float holds."
_LAST_TIME = 253_000_000_000.0
"Seconds since 1970, within the year 9987, which calendars can show."


def _build(cls: type[T], data: dict[str, Any]) -> T:
    """Builds a `cls` from JSON values; drops unknown keys, which a newer engine may send."""
    hints, exact = _type_hints(cls)  # type: ignore[arg-type]
    values = {name: value for name, value in data.items() if name in hints}
    for name, value in values.items():
        kind = type(value)
        # A journal of weeks has a million lines: the usual types are told by one look-up.
        if kind in exact[name] and (kind is str or value is None or -_MOST < value < _MOST):
            continue
        if kind is float and abs(value) >= _MOST and _is(None, hints[name]):
            values[name] = None
        elif not _is(value, hints[name]):
            raise ProtocolError(f"{cls.__name__}.{name}: {value!r} is not {hints[name]}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ProtocolError(f"{cls.__name__}: {error}") from None


@functools.cache
def _type_hints(cls: type) -> tuple[dict[str, Any], dict[str, frozenset[type]]]:
    """Returns the annotation of each field, and the simple types that always suit it."""
    hints = typing.get_type_hints(cls)
    hints = {field.name: hints[field.name] for field in fields(cls)}
    probes = ("", 0, 0.5, None)
    exact = {
        name: frozenset(type(probe) for probe in probes if typing.get_origin(hint) is not Literal and _is(probe, hint))
        for name, hint in hints.items()
    }
    return hints, exact


def _is(value: Any, hint: Any) -> bool:
    """Tells whether a JSON value is of the annotated type. A bool is not a number; an int is a valid float."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_is(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is dict:
        return isinstance(value, dict)
    if hint is type(None):
        return value is None
    if hint in (float, int):
        # JSON has whole numbers of any length, which no float holds and no screen shows.
        kinds = (int, float) if hint is float else (int,)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < _MOST
    return isinstance(value, hint)
