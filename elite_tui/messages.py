"""Every message of the app. Read this first: workers and the pump post these to the App, which owns the state.

The App folds a message into its state and tells the screens with `Changed`; screens draw from the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from elite_tui.runs.followed import News
    from elite_tui.wizard.facts import RepositoryFacts
    from elite_tui.wizard.plans import Plans
    from engine.config import RunConfig
    from engine.errors import EliteError
    from engine.hardware.machine import Machine
    from engine.hardware.telemetry import Snapshot
    from engine.runtime.doctor import Check
    from engine.runtime.handle import RunHandle
    from engine.runtime.run_summary import RunSummary


# --- from workers to the App -------------------------------------------------------------------------------


@dataclass
class RepositoryRead(Message):
    """A scan of the repositories ended."""

    outcome: RepositoryFacts | EliteError


@dataclass
class MachineFound(Message):
    """The inventory of this machine, or the simulated one."""

    outcome: Machine | EliteError


@dataclass
class TiersPlanned(Message):
    """The tier table for the present choices."""

    outcome: Plans | EliteError


@dataclass
class PreflightDone(Message):
    """Everything that can be checked before a run starts was checked."""

    outcome: RunConfig | EliteError


@dataclass
class RunsListed(Message):
    """The runs that this user has, newest first."""

    outcome: Sequence[RunSummary] | EliteError


@dataclass
class CheckMade(Message):
    """One pre-flight row of an examination; without a row it ended, with an error it could not be made."""

    number: int
    row: Check | None = None
    error: EliteError | None = None
    names: Sequence[str] = ()


@dataclass
class Progressed(Message):
    """How far a long question is; `what` names the attribute of AppState that holds it."""

    what: str
    progress: Any

    def can_replace(self, message: Message) -> bool:
        """Whether an older one still in the queue may be dropped."""
        return isinstance(message, Progressed) and message.what == self.what


@dataclass
class Answered(Message):
    """The engine's answer to one of the wizard's questions; `what` names the attribute of AppState that holds it."""

    what: str
    outcome: Any


@dataclass
class RunOpened(Message):
    """A run was launched or attached to."""

    outcome: RunHandle | EliteError
    launched: bool
    show: bool = True
    "Whether it comes on screen, or only into a tab."


@dataclass
class Sampled(Message):
    """A new telemetry snapshot; only the newest one matters."""

    snapshot: Snapshot | None

    def can_replace(self, message: Message) -> bool:
        """Whether an older one still in the queue may be dropped."""
        return isinstance(message, Sampled)


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
    """A part of the state changed; `what` names the attribute of AppState."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def can_replace(self, message: Message) -> bool:
        """Screens draw from the state, so one notice of each kind is enough."""
        return isinstance(message, Changed) and message.what == self.what
