"""Defines every message of the app. Read this first: workers and the pump post these to the App, which owns the state.

The App folds a message into its state and notifies the screens with `Changed`; screens draw from the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from textual.message import Message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from elite_tui.remote_data import RemoteData
    from elite_tui.runs.followed import News
    from elite_tui.state_part import StatePart
    from elite_tui.wizard.facts import Reading
    from elite_tui.wizard.remedies import ModelOutlook
    from engine.errors import EliteError
    from engine.hardware.telemetry import Snapshot
    from engine.launch.doctor import Check
    from engine.launch.handle import RunHandle

T = TypeVar("T")

# --- from workers to the App -------------------------------------------------------------------------------


class Latest(Message):
    """A message of which only the newest of its class matters; older ones still in the queue are dropped."""

    def can_replace(self, message: Message) -> bool:
        """Returns whether this message replaces the other."""
        return type(message) is type(self)


@dataclass
class Answered(Message, Generic[T]):
    """The engine's answer to a request for a part of the state."""

    fetched: RemoteData[T]
    "The part of the state that the answer fills."
    outcome: T | EliteError

    def settle(self) -> None:
        """Writes the answer into the state."""
        self.fetched.settle(self.outcome)


@dataclass
class CheckMade(Message):
    """One pre-flight row; without a row, the end of the examination, with an error if it failed."""

    number: int
    row: Check | None = None
    error: EliteError | None = None
    names: Sequence[str] = ()


@dataclass
class MeasuringProgressed(Latest):
    """Progress of the current measurement."""

    line: str


@dataclass
class ModelPlanned(Message):
    """The tiers of one model of the catalogue."""

    asked: object
    "The request that this is of."
    outlook: ModelOutlook


@dataclass
class ReadingProgressed(Latest):
    """Progress of reading the repositories."""

    reading: Reading


@dataclass
class RunOpened(Message):
    """The result of launching or attaching to a run."""

    outcome: RunHandle | EliteError
    launched: bool
    show: bool = True
    "Whether to show the run, or only add its tab."


@dataclass
class RunResumed(Message):
    """The result of resuming a run that had ended."""

    outcome: RunHandle | EliteError


@dataclass
class Sampled(Latest):
    """A new telemetry snapshot."""

    snapshot: Snapshot | None


@dataclass
class RunNews(Message):
    """A followed run's events since the last poll. Never dropped, since charts and logs accumulate them."""

    key: str
    "OpenRun.key."
    news: News


@dataclass
class RunDeleted(Message):
    """The result of deleting a run."""

    run_id: str
    path: Path
    error: EliteError | None


@dataclass
class GenerationSaid(Message):
    """An event of the generation process (engine.generation.serving). Never dropped, since its text accumulates."""

    session: int
    event: dict[str, Any]


@dataclass
class CommandSent(Message):
    """The result of sending a command to a run."""

    key: str
    "OpenRun.key."
    command_id: str
    command: str
    error: EliteError | None


# --- from the App to its screens ---------------------------------------------------------------------------


class Changed(Message, bubble=False):
    """A part of the state changed."""

    def __init__(self, part: StatePart) -> None:
        super().__init__()
        self.part = part

    def can_replace(self, message: Message) -> bool:
        """Returns whether both concern one part; screens draw from the state, so one notice of each is enough."""
        return isinstance(message, Changed) and message.part is self.part
