"""What a training recipe sees of its process: its configuration, a way to tell, and an inbox of commands."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from engine.protocol import Command, CommandAcked, Envelope, Event, PhaseChanged, RunFailed, RunFinished, Stop
from engine.runs.process_group import ProcessGroup

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.runs.run_directory import RunDirectory


class Journal(Protocol):
    """Where events go first (engine.runs.journal.JournalWriter)."""

    @property
    def waits(self) -> bool:
        """Whether events wait in memory for room on the disk."""

    def append(self, event: Event) -> Envelope:
        """Takes an event, and returns it with its place in the run."""


Listener = Callable[[Envelope], None]
"""Is told of every event after it is in the journal; must neither block nor raise."""


class CommandInbox:
    """Commands in order of arrival, from the queue, the control socket and signals. Any thread may deliver."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._stop = threading.Event()

    def deliver(self, command: Command) -> None:
        """Adds a command."""
        if isinstance(command, Stop):
            self._stop.set()
        self._commands.put(command)

    def poll(self) -> Command | None:
        """The next command, or None at once."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def wait(self, timeout_s: float) -> Command | None:
        """The next command, or None after `timeout_s` seconds without one."""
        try:
            return self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return None

    @property
    def stop_requested(self) -> bool:
        """Whether a Stop has arrived, polled or not. Stays true. Cheap enough for the innermost loop."""
        return self._stop.is_set()


class TrainingSession:
    """One attempt at a run, as its recipe sees it.

    Attributes:
        config: What to train.
        run: Where everything about the run is kept.
        resuming: Whether to go on from the run's newest checkpoint.
        commands: What people ask for meanwhile; the recipe acknowledges each one.
        ending: The last event, once it was emitted.
        phase: What the run is at; "" before its first PhaseChanged.
        team: The processes that train together.

    The recipe emits its events, ends with a RunFinished, and raises what goes wrong: the process around it
    (engine.launch.child) turns exceptions into a RunFailed.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        run: RunDirectory,
        resuming: bool,
        journal: Journal,
        group: ProcessGroup | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.resuming = resuming
        self.commands = CommandInbox()
        self.ending: RunFinished | RunFailed | None = None
        self.phase = ""
        self.group = group or ProcessGroup()
        self._journal = journal
        self._listeners: list[Listener] = []
        self._lock = threading.RLock()

    def listen(self, listener: Listener) -> None:
        """Adds somebody who is told of every event from now on."""
        self._listeners.append(listener)

    @property
    def journal_waits(self) -> bool:
        """Whether the disk is so full that events wait in memory to be written."""
        return self._journal.waits

    def emit(self, event: Event) -> None:
        """Writes the event to the journal and tells whoever follows the run. Any thread may call it.

        Raises:
            OSError: the journal cannot be written, and not only for a full disk.
        """
        # One lock over both, so that followers hear events in the order of their numbers.
        with self._lock:
            envelope = self._journal.append(event)
            if isinstance(event, (RunFinished, RunFailed)):
                self.ending = event
            elif isinstance(event, PhaseChanged):
                self.phase = event.phase
            for listener in self._listeners:
                listener(envelope)

    def acknowledge(self, command: Command, accepted: bool, text: str = "") -> None:
        """Answers a command: carried out, or refused with the reason in `text`."""
        self.emit(CommandAcked(command_id=command.id, command=type(command).__name__, accepted=accepted, text=text))
