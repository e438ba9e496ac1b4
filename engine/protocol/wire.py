"""Writes events and commands as one JSON object on one line, and reads them back.

An event travels in an `Envelope`::

    {"schema": 1, "run": "20260101-120000-demo-3f2a", "seq": 7, "time": 1767268800.25, "kind": "...", ...}

Every number is finite or null: JSON has no NaN, and a chart must be able to tell "no value" from 0.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Union

from engine.protocol.commands import COMMANDS, Command
from engine.protocol.events import EVENTS, Event, UnknownEvent

SCHEMA = 1
"""Raised when an event or command loses or redefines a field, never for a new field with a default."""


class ProtocolError(ValueError):
    """A line that is not an event or command of this schema. The message says what is wrong with it."""


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
