"""Provides a training session in the test's process that records every event and sends commands at chosen steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from engine.config import RunConfig
from engine.protocol.commands import Command, Stop
from engine.protocol.events import CommandAcked, Event, StepCompleted
from engine.runs.process_group import ProcessGroup
from engine.runs.run_directory import RunDirectory

Script = Mapping[int, Iterable[Command]]
E = TypeVar("E", bound=Event)


class ScriptedInbox:
    """Delivers commands after completed steps. `script` maps completed steps to commands."""

    def __init__(self, script: Script) -> None:
        self._script = {step: list(commands) for step, commands in script.items()}
        self._waiting: list[Command] = []
        self.interrupted = False

    def step_done(self, step: int) -> None:
        self._waiting += self._script.pop(step, [])

    def poll(self) -> Command | None:
        return self._waiting.pop(0) if self._waiting else None

    def wait(self, timeout_s: float) -> Command:
        if not self._waiting:
            raise AssertionError("paused with nothing more to come")
        return self._waiting.pop(0)

    @property
    def stop_requested(self) -> bool:
        return self.interrupted or any(isinstance(command, Stop) for command in self._waiting)


@dataclass
class RecordingSession:
    """The run as engine.training sees it. Records events in `events`."""

    config: RunConfig
    run: RunDirectory
    resuming: bool = False
    script: Script = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    journal_waits: bool = False
    group: ProcessGroup = field(default_factory=ProcessGroup)

    def __post_init__(self) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.commands = ScriptedInbox(self.script)
        self.commands.step_done(0)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StepCompleted):
            self.commands.step_done(event.step)

    def acknowledge(self, command: Command, accepted: bool, text: str = "") -> None:
        self.emit(CommandAcked(command_id=command.id, command=type(command).__name__, accepted=accepted, text=text))

    def check_run(self) -> None:
        pass

    def of(self, kind: type[E]) -> list[E]:
        """Returns the events of one type."""
        return [event for event in self.events if isinstance(event, kind)]
