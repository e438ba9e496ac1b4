"""Relays events from rank 0 to the run's supervisor and commands back, one JSON message each."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from engine.protocol.commands import Command
from engine.protocol.events import Event, StepProgress
from engine.protocol.wire import Envelope, ProtocolError, decode_command, decode_event, encode_command, encode_event

_LAST_WORDS_S = 10.0
"""Seconds that `close` waits for a rank 0 that does not end."""


class RelayServer:
    """Receives rank 0's events and sends it commands. Runs in the supervisor's process.

    Args:
        take: Called for each event, in the relay's thread.
    """

    def __init__(self, take: Callable[[Event], None]) -> None:
        self._take = take
        # A temporary folder is private to this user, and its path is short enough for a socket.
        self._folder = Path(tempfile.mkdtemp(prefix="elite-relay-"))
        self._listener = Listener(str(self._folder / "rank0"), "AF_UNIX")
        self._connection: Connection | None = None
        self._waiting: list[Command] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Address for rank 0 to connect to."""
        return str(self._listener.address)

    def send(self, command: Command) -> None:
        """Sends a command, immediately or as soon as rank 0 is connected."""
        with self._lock:
            self._waiting.append(command)
            self._flush()

    def _flush(self) -> None:
        while self._connection is not None and self._waiting:
            with contextlib.suppress(OSError):  # rank 0 is gone, which the agent reports
                self._connection.send_bytes(encode_command(self._waiting[0]).encode())
            self._waiting.pop(0)

    def _serve(self) -> None:
        try:
            connection = self._listener.accept()
        except OSError:
            return
        with self._lock:
            self._connection = connection
            self._flush()
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._take(decode_event(connection.recv_bytes()).event)

    def close(self) -> None:
        """Closes the relay after the last events of a rank 0 that has ended."""
        with contextlib.suppress(OSError):
            Client(self.address, "AF_UNIX").close()  # unblocks accept() if no rank ever connected
        self._thread.join(_LAST_WORDS_S)
        self._listener.close()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class RelayJournal:
    """Journal of rank 0, which sends events to the supervisor's process. That numbers and writes them.

    Args:
        address: Address of the RelayServer.
        run: The run's id.
    """

    def __init__(self, address: str, run: str) -> None:
        self._connection = Client(address, "AF_UNIX")
        self._run = run

    def listen(self, deliver: Callable[[Command], None]) -> None:
        """Delivers each command that arrives from now on, in a thread."""
        threading.Thread(target=self._receive, args=(deliver,), name="commands", daemon=True).start()

    @property
    def waits(self) -> bool:
        """Returns False, because events only ever wait in the supervisor's process."""
        return False

    def take_problem(self) -> str:
        """Returns "", because only the supervisor's process writes."""
        return ""

    def append(self, event: Event) -> Envelope:
        """See engine.runs.context.Journal."""
        envelope = Envelope(run=self._run, seq=0, time=time.time(), event=event)
        try:
            self._connection.send_bytes(encode_event(envelope).encode())
        except OSError:
            _end_orphan()
        return envelope

    def _receive(self, deliver: Callable[[Command], None]) -> None:
        while True:
            try:
                deliver(decode_command(self._connection.recv_bytes()))
            except ProtocolError as error:
                print(f"ignored a command: {error}", file=sys.stderr)  # noqa: T201 - into the rank's log
            except (EOFError, OSError):
                _end_orphan()


class SilentJournal:
    """Journal of the other ranks, which prints events into their logs."""

    @property
    def waits(self) -> bool:
        """Returns False."""
        return False

    def take_problem(self) -> str:
        """Returns ""."""
        return ""

    def append(self, event: Event) -> Envelope:
        """See engine.runs.context.Journal."""
        envelope = Envelope(run="", seq=0, time=time.time(), event=event)
        if not isinstance(event, StepProgress):
            print(encode_event(envelope), flush=True)  # noqa: T201 - into the rank's log
        return envelope


def _end_orphan() -> None:
    """Ends this rank after the supervisor's process died, because nothing receives its events any more."""
    print("the run's own process is gone", file=sys.stderr, flush=True)  # noqa: T201 - into the rank's log
    os._exit(1)
