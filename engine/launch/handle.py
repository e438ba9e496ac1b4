"""Follows and controls one run, from the process that launched it or from any other."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from queue import Empty
from typing import TYPE_CHECKING

from engine import regular_file
from engine.errors.runs import RUN_CONTROL_UNREACHABLE, RUN_MOVED
from engine.errors.training import CHILD_DIED
from engine.protocol.commands import Command
from engine.protocol.events import PhaseChanged, RunFailed, RunFinished, RunStarted, StepProgress
from engine.protocol.wire import Envelope, encode_command
from engine.runs import process_record
from engine.runs.access import Access, look
from engine.runs.control import deliver_command, not_active
from engine.runs.journal import JournalReader, decode_line, read_ends
from engine.runs.run_summary import ACTIVE

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.queues import Queue, SimpleQueue
    from pathlib import Path

    from engine.runs.run_directory import RunDirectory
    from engine.runs.run_summary import RunStatus

_LOG_TAIL_BYTES = 8000
_TAPPED_LIMIT = 1000
_DRAIN_LIMIT = 2000
_LONG_JOURNAL = 4 << 20
"""Bytes of a journal that takes so long to read that its ends are read first."""
_GLANCE_BYTES = 1 << 18
_READ_AT_ONCE = 1 << 18
"""Bytes of a journal that one poll decodes, in a few milliseconds."""


class RunHandle:
    """Yields all events of a run in order and sends it commands. Not thread-safe.

    The queue is a fast copy of the journal that may lose events; the journal is complete except for most StepProgress.
    The handle merges them in order of `seq`, without duplicates, and with no event missing except StepProgress. It
    starts with the run's first event, even if the run is resumed or attached to.

    Attributes:
        run: The run.
        first_seq: Number of the first event of the attempt that was launched; 0 for an attached run.
        ending: The run's last event, once `poll` has returned it. Resuming the run resets it to None.
        unreadable: At the last poll, whether the journal could not be read and no process was there to write it.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        process: SpawnProcess | None = None,
        events: Queue[str] | None = None,
        commands: SimpleQueue[str] | None = None,
        first_seq: int = 0,
    ) -> None:
        self.run = run
        self.first_seq = first_seq
        self.ending: RunFinished | RunFailed | None = None
        self._process = process
        self._events = events
        self._commands = commands
        self._reader = JournalReader(run.journal_path)
        self._next = 0
        self._catching_up = True
        "Whether the journal held more than the polls so far have read, such as that of a resumed run."
        self._glanced = -1
        self._tapped: set[int] = set()
        self.unreadable = False
        self._presumed_dead = False
        "Whether `ending` was inferred here. On another machine, a stale mount looks like a dead run."

    @classmethod
    def attach(cls, run: RunDirectory) -> RunHandle:
        """Attaches to a run that was started elsewhere; `poll` replays its journal and continues live."""
        return cls(run)

    @property
    def damaged_lines(self) -> int:
        """Lines of the journal that were skipped."""
        return self._reader.damaged

    @property
    def problem(self) -> str:
        """Why the journal currently cannot be read, "" if it can."""
        return self._reader.problem

    @property
    def behind(self) -> bool:
        """Whether the last poll left events unread that are already in the journal."""
        return self._reader.behind

    @property
    def share(self) -> float:
        """Share of the journal that was read, from 0 to 1."""
        return self._reader.share

    def glance(self) -> list[Envelope]:
        """Returns the first and latest events of a long journal that `poll` has not reached, which it returns again.

        A second call returns only the events since. Empty for a short journal.
        """
        if self._events is not None or not (self._reader.behind or self._reader.share == 0.0):
            return []
        try:
            if self.run.journal_path.stat().st_size < _LONG_JOURNAL:
                return []
            head, tail = read_ends(self.run.journal_path, _GLANCE_BYTES)
        except OSError:
            return []
        found = [envelope for envelope in (*head, *tail) if envelope.seq > self._glanced]
        if found:
            self._glanced = found[-1].seq
        return found

    def poll(self) -> list[Envelope]:
        """Returns the events since the last call. Never blocks.

        If the training process ended without a last event, or its folder is gone, it adds a RunFailed with error
        "child-died" or "run-moved", which is not in the journal.
        """
        # Liveness is read before events, so that all events of a dead process are in the journal.
        ours_alive = self._process is not None and self._process.exitcode is None
        record = process_record.read_record(self.run.process_path)
        alive = ours_alive or (record is not None and process_record.is_alive(self.run.process_path, record))
        envelopes = self._merge(queue_is_fed=ours_alive)
        self.unreadable = bool(self.problem) and not alive
        if self._events is not None and not ours_alive:
            self.close()
        first = record.first_seq if record else 0
        for envelope in envelopes:
            self._follow_ending(envelope, first)
        if not (alive or self.ending or self.problem or self.behind) and self._is_over(envelopes):
            self.ending = self._describe_death()
            self._presumed_dead = True
            envelopes.append(Envelope(run=self.run.id, seq=self._next, time=time.time(), event=self.ending))
        return envelopes

    def _is_over(self, news: list[Envelope]) -> bool:
        """Whether a run without a process has no last event, or one that the order of a damaged journal hides."""
        status = self.status()
        return status == "died" or (status not in ACTIVE and not news)

    def send(self, command: Command) -> None:
        """Sends a command; its CommandAcked comes with the events.

        Raises:
            EliteError: RUN_NOT_ACTIVE or RUN_CONTROL_UNREACHABLE.
        """
        if self._commands is not None and self._process is not None and self._process.exitcode is None:
            self._commands.put(encode_command(command))
        else:
            deliver_command(self.run, command)

    def access(self) -> Access:
        """Tells whether the run takes commands from here, and if not, why."""
        if self._commands is not None and self._process is not None and self._process.exitcode is None:
            return Access(here=True)
        return look(self.run)

    def status(self) -> RunStatus:
        """Reads the run's status."""
        return self.run.status()

    def close(self) -> None:
        """Detaches from the run, which continues. `poll` then reads the journal alone."""
        if self._events is not None:
            self._events.close()
            self._events = None
            self._tapped.clear()
        if self._commands is not None:
            self._commands.close()
            self._commands = None

    def wait_exit(self, timeout_s: float) -> bool:
        """Waits up to `timeout_s` seconds for the process, which still frees memory after its last event, to exit."""
        if self._process is not None:
            self._process.join(timeout_s)
            return self._process.exitcode is not None
        deadline = time.monotonic() + timeout_s
        while (record := process_record.read_record(self.run.process_path)) is not None:
            if not process_record.is_alive(self.run.process_path, record):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signals the training process. SIGTERM requests a stop; a second one or SIGKILL ends it immediately.

        Raises:
            EliteError: RUN_NOT_ACTIVE; RUN_CONTROL_UNREACHABLE, if it is on another machine.
        """
        record = process_record.read_record(self.run.process_path)
        if record is None or not process_record.is_alive(self.run.process_path, record):
            raise not_active(self.run, self.status())
        if record.place != process_record.this_place():
            raise RUN_CONTROL_UNREACHABLE(run=self.run.id, problem="it runs on another machine")
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                # It leads its own process group, so this also ends the processes that it started.
                os.killpg(os.getpgid(record.pid), number)
            else:
                os.kill(record.pid, number)

    def _merge(self, queue_is_fed: bool) -> list[Envelope]:
        if self._events is None or self._catching_up:
            # Events of the queue wait in it meanwhile.
            envelopes = self._reader.poll(_READ_AT_ONCE)
            self._catching_up = self._reader.behind
        else:
            tapped = [envelope for envelope in self._drain(self._events) if envelope.seq >= self._next]
            gapless = [envelope.seq for envelope in tapped] == list(range(self._next, self._next + len(tapped)))
            if tapped and gapless and queue_is_fed and len(self._tapped) < _TAPPED_LIMIT:
                envelopes = tapped
            else:
                envelopes = self._add_journal(tapped)
            self._tapped.update(e.seq for e in tapped if not isinstance(e.event, StepProgress))
        if envelopes:
            self._next = max(self._next, envelopes[-1].seq + 1)
        return envelopes

    def _add_journal(self, tapped: list[Envelope]) -> list[Envelope]:
        """Merges the queue's events with those of the journal's new lines that the queue has not given, in order."""
        found = {envelope.seq: envelope for envelope in tapped}
        for envelope in self._reader.poll():
            stale = isinstance(envelope.event, StepProgress) and envelope.seq < self._next
            if envelope.seq in self._tapped:
                self._tapped.discard(envelope.seq)
            elif not stale:
                found.setdefault(envelope.seq, envelope)
        return [found[seq] for seq in sorted(found)]

    def _drain(self, events: Queue[str]) -> list[Envelope]:
        envelopes = []
        with contextlib.suppress(Empty):
            for _ in range(_DRAIN_LIMIT):
                envelope = decode_line(events.get_nowait().encode())
                if envelope is not None:
                    envelopes.append(envelope)
        return envelopes

    def _follow_ending(self, envelope: Envelope, first_seq: int) -> None:
        if isinstance(envelope.event, (RunFinished, RunFailed)):
            # The end of an earlier attempt does not end a run that was resumed since.
            self.ending = envelope.event if envelope.seq >= first_seq else None
        elif isinstance(envelope.event, (RunStarted, PhaseChanged)) or self._presumed_dead:
            self.ending = None
        self._presumed_dead = False

    def _describe_death(self) -> RunFailed:
        if self.run.path.exists():
            error = CHILD_DIED(problem=self._cause_of_death(), log=self.run.log_path, run=self.run.id)
        else:
            # The process, which may still be there, says so in the journal of the folder's new name.
            error = RUN_MOVED(path=self.run.path)
        return RunFailed(
            error=error.code,
            message=error.message,
            hint=error.remedy,
            exit_code=error.exit_code,
            traceback=_tail(self.run.log_path),
        )

    def _cause_of_death(self) -> str:
        status = self._process.exitcode if self._process else None
        if status is None and not look(self.run).here:
            return "no sign of life for two minutes from the machine that trains, or this folder is an old copy"
        if status in (None, -signal.SIGKILL) and self._memory_ran_out():
            return "the kernel ended it because memory ran out: leave more RAM free, or choose a lower tier"
        if status is None:
            return "it is gone: killed, or the machine was restarted"
        if status == -signal.SIGKILL:
            return "killed by SIGKILL"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def _memory_ran_out(self) -> bool:
        record = process_record.read_record(self.run.process_path)
        return record is not None and process_record.memory_ran_out(record)


def _tail(path: Path) -> str:
    """Reads the end of a log, from the start of a line; "" if there is none."""
    try:
        return regular_file.read_tail(path, _LOG_TAIL_BYTES)
    except OSError:
        return ""
