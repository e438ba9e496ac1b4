"""TrainingSession, which gives a recipe its configuration, its event journal and its command inbox."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from engine.protocol.commands import Command, Stop
from engine.protocol.events import CommandAcked, Event, PhaseChanged, RunFailed, RunFinished, WarningRaised
from engine.protocol.wire import Envelope
from engine.runs.held_directory import HeldDirectory
from engine.runs.process_group import ProcessGroup

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.runs.run_directory import RunDirectory


class Journal(Protocol):
    """Journal that receives every event first (engine.runs.journal.JournalWriter)."""

    @property
    def waits(self) -> bool:
        """Whether events wait for disk space."""

    def take_problem(self) -> str:
        """Returns how the disk failed since the last call, "" if it did not."""

    def append(self, event: Event) -> Envelope:
        """Appends an event, and returns it with its place in the run."""


Listener = Callable[[Envelope], None]
"""Called for each event after it is journaled; must neither block nor raise."""


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
        """Returns the next command; None if there is none."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def wait(self, timeout_s: float) -> Command | None:
        """Waits for the next command; returns None after `timeout_s` seconds without one."""
        try:
            return self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return None

    @property
    def stop_requested(self) -> bool:
        """Whether a Stop has arrived, polled or not. Stays true. Cheap enough for the innermost loop."""
        return self._stop.is_set()


class TrainingSession:
    """One attempt at a run, from its recipe's side.

    Attributes:
        config: Configuration of the run.
        run: The run's directory.
        resuming: Whether to continue from the run's newest checkpoint.
        commands: Commands of users; the recipe acknowledges each one.
        ending: The last event, once it was emitted.
        phase: Current phase; "" before the first PhaseChanged.
        group: The processes that train together.

    The recipe emits its events, ends with a RunFinished, and raises its errors. The child process
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
        self._held = HeldDirectory(run.path)
        self._journal = journal
        self._listeners: list[Listener] = []
        self._lock = threading.RLock()

    def listen(self, listener: Listener) -> None:
        """Adds a listener for every event from now on."""
        self._listeners.append(listener)

    def check_run(self) -> None:
        """Checks that the run directory is still under its name. Cheap enough for every tile of a step.

        Raises:
            EliteError: RUN_MOVED.
        """
        self._held.check()

    @property
    def journal_waits(self) -> bool:
        """Whether events wait in memory because the disk is full."""
        return self._journal.waits

    def emit(self, event: Event) -> None:
        """Writes the event to the journal and calls all listeners. Any thread may call it.

        Raises:
            OSError: the journal cannot be written, and waiting would not help (engine.durable).
        """
        # One lock over both, so that listeners get events in the order of their numbers.
        with self._lock:
            envelope = self._journal.append(event)
            if isinstance(event, (RunFinished, RunFailed)):
                self.ending = event
            elif isinstance(event, PhaseChanged):
                self.phase = event.phase
            for listener in self._listeners:
                listener(envelope)
            if problem := self._journal.take_problem():
                self.emit(
                    WarningRaised(
                        code="journal-not-synced",
                        text=f"the disk failed while the journal was written: {problem}",
                        hint="the disk may be failing: the run goes on, and writes these events again",
                    )
                )

    def acknowledge(self, command: Command, accepted: bool, text: str = "") -> None:
        """Acknowledges a command as executed, or as refused with the reason in `text`."""
        self.emit(CommandAcked(command_id=command.id, command=type(command).__name__, accepted=accepted, text=text))
