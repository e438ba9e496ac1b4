"""Provides a training session in the test's process that records every event and sends commands at chosen steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.protocol import CommandAcked, Stop
from engine.runs.process_group import ProcessGroup


class ScriptedInbox:
    """Delivers commands after completed steps. `script` maps completed steps to commands."""

    def __init__(self, script):
        self._script = {step: list(commands) for step, commands in script.items()}
        self._waiting = []
        self.interrupted = False

    def step_done(self, step):
        self._waiting += self._script.pop(step, [])

    def poll(self):
        return self._waiting.pop(0) if self._waiting else None

    def wait(self, timeout_s):
        if not self._waiting:
            raise AssertionError("paused with nothing more to come")
        return self._waiting.pop(0)

    @property
    def stop_requested(self):
        return self.interrupted or any(isinstance(command, Stop) for command in self._waiting)


@dataclass
class RecordingSession:
    """The run as engine.training sees it. Records events in `events`."""

    config: object
    run: object
    resuming: bool = False
    script: dict = field(default_factory=dict)
    events: list = field(default_factory=list)
    journal_waits: bool = False
    group: ProcessGroup = field(default_factory=ProcessGroup)

    def __post_init__(self):
        self.commands = ScriptedInbox(self.script)
        self.commands.step_done(0)

    def emit(self, event):
        self.events.append(event)
        if type(event).__name__ == "StepCompleted":
            self.commands.step_done(event.step)

    def acknowledge(self, command, accepted, text=""):
        self.emit(CommandAcked(command_id=command.id, command=type(command).__name__, accepted=accepted, text=text))

    def of(self, kind):
        """Returns the events of one type."""
        return [event for event in self.events if isinstance(event, kind)]
