"""Every message of the app. Read this first: workers and the pump post these to the App, which owns the state.

The App folds a message into its state and tells the screens with `Changed`; screens draw from the state.
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
    from engine.errors import EliteError
    from engine.hardware.telemetry import Snapshot
    from engine.launch.doctor import Check
    from engine.launch.handle import RunHandle

T = TypeVar("T")

# --- from workers to the App -------------------------------------------------------------------------------


class Latest(Message):
    """Only the newest of its class matters: an older one that is still in the queue is dropped."""

    def can_replace(self, message: Message) -> bool:
        """Whether this one takes the other's place."""
        return type(message) is type(self)


@dataclass
class Answered(Message, Generic[T]):
    """The engine's answer to the question that fills a part of the state."""

    fetched: RemoteData[T]
    "Where the answer belongs."
    outcome: T | EliteError

    def settle(self) -> None:
        """Writes the answer into the state."""
        self.fetched.settle(self.outcome)


@dataclass
class CheckMade(Message):
    """One pre-flight row of an examination; without a row it ended, with an error it could not be made."""

    number: int
    row: Check | None = None
    error: EliteError | None = None
    names: Sequence[str] = ()


@dataclass
class MeasuringProgressed(Latest):
    """How far the measurement under way is."""

    line: str


@dataclass
class ReadingProgressed(Latest):
    """How far the reading of the repositories is."""

    reading: Reading


@dataclass
class RunOpened(Message):
    """A run was launched or attached to."""

    outcome: RunHandle | EliteError
    launched: bool
    show: bool = True
    "Whether it comes on screen, or only into a tab."


@dataclass
class Sampled(Latest):
    """A new telemetry snapshot."""

    snapshot: Snapshot | None


@dataclass
class RunNews(Message):
    """What a run that is followed said since the last poll. Never dropped: charts and logs are made of its events."""

    key: str
    "OpenRun.key."
    news: News


@dataclass
class RunDeleted(Message):
    """A run was deleted, or could not be."""

    run_id: str
    path: Path
    error: EliteError | None


@dataclass
class GenerationSaid(Message):
    """The process that writes text had something to say (engine.generation.serving). Never dropped: text adds up."""

    session: int
    event: dict[str, Any]


@dataclass
class CommandSent(Message):
    """A command was handed to a run, or could not be."""

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
        """Screens draw from the state, so one notice of each part is enough."""
        return isinstance(message, Changed) and message.part is self.part
