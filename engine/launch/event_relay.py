"""The wire between a run's own process and rank 0: events one way, commands the other, one JSON line each."""

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

from engine.protocol import (
    Command,
    Envelope,
    Event,
    ProtocolError,
    StepProgress,
    decode_command,
    decode_event,
    encode_command,
    encode_event,
)

_LAST_WORDS_S = 10.0
"""How long the wire stays open for a rank 0 that does not end."""


class RelayServer:
    """Takes the events of rank 0, and gives it commands. In the run's own process.

    Args:
        take: Called for each event, in a thread of its own.
    """

    def __init__(self, take: Callable[[Event], None]) -> None:
        self._take = take
        # A folder that only this user can enter; its path is short, as a socket's must be.
        self._folder = Path(tempfile.mkdtemp(prefix="elite-relay-"))
        self._listener = Listener(str(self._folder / "rank0"), "AF_UNIX")
        self._connection: Connection | None = None
        self._waiting: list[Command] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where rank 0 finds it."""
        return str(self._listener.address)

    def send(self, command: Command) -> None:
        """Passes a command on, at once or when rank 0 is there."""
        with self._lock:
            self._waiting.append(command)
            self._flush()

    def _flush(self) -> None:
        while self._connection is not None and self._waiting:
            with contextlib.suppress(OSError):  # rank 0 is gone, and the agent will say so
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
        """Ends the wire, after what a rank 0 that has ended said last."""
        with contextlib.suppress(OSError):
            Client(self.address, "AF_UNIX").close()  # no rank may ever have come: this ends the wait for one
        self._thread.join(_LAST_WORDS_S)
        self._listener.close()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class RelayJournal:
    """Where rank 0's events go: to the run's own process, which numbers and writes them.

    Args:
        address: Of the RelayServer.
        run: The run's id.
    """

    def __init__(self, address: str, run: str) -> None:
        self._connection = Client(address, "AF_UNIX")
        self._run = run

    def listen(self, deliver: Callable[[Command], None]) -> None:
        """Hands over each command that arrives, in a thread, from now on."""
        threading.Thread(target=self._receive, args=(deliver,), name="commands", daemon=True).start()

    @property
    def waits(self) -> bool:
        """Events wait in the run's own process, if anywhere."""
        return False

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
    """Where the other ranks' events go: into their logs."""

    @property
    def waits(self) -> bool:
        """Never."""
        return False

    def append(self, event: Event) -> Envelope:
        """See engine.runs.context.Journal."""
        envelope = Envelope(run="", seq=0, time=time.time(), event=event)
        if not isinstance(event, StepProgress):
            print(encode_event(envelope), flush=True)  # noqa: T201 - into the rank's log
        return envelope


def _end_orphan() -> None:
    """The run's own process is gone: nobody would hear what this rank does."""
    print("the run's own process is gone", file=sys.stderr, flush=True)  # noqa: T201 - into the rank's log
    os._exit(1)
