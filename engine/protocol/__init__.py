"""Events and commands, the only messages that cross the process boundary.

    events      what a run reports
    commands    what it is asked to do
    wire        either as one JSON object on one line

Standard library only, so that any process can read a journal without importing the engine's dependencies. A program of
its own that follows or controls runs finds all names here; the engine and the app name the module that they need.
"""

from engine.protocol.commands import COMMANDS, Command, EvaluateNow, Pause, Resume, SaveNow, Stop
from engine.protocol.events import (
    EVENTS,
    PAUSED_PREFIX,
    PHASES,
    CheckpointSaved,
    CommandAcked,
    EvalCompleted,
    Event,
    LogLine,
    PhaseChanged,
    RankReported,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    UnknownEvent,
    WarningRaised,
)
from engine.protocol.wire import (
    SCHEMA,
    Envelope,
    ProtocolError,
    decode_command,
    decode_event,
    encode_command,
    encode_event,
)

__all__ = [
    "COMMANDS",
    "EVENTS",
    "PAUSED_PREFIX",
    "PHASES",
    "SCHEMA",
    "CheckpointSaved",
    "Command",
    "CommandAcked",
    "Envelope",
    "EvalCompleted",
    "EvaluateNow",
    "Event",
    "LogLine",
    "Pause",
    "PhaseChanged",
    "ProtocolError",
    "RankReported",
    "RecoveryTaken",
    "Resume",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "SaveNow",
    "StepCompleted",
    "StepProgress",
    "Stop",
    "UnknownEvent",
    "WarningRaised",
    "decode_command",
    "decode_event",
    "encode_command",
    "encode_event",
]
