"""Sends commands to a running training process over the unix socket in its run directory.

A client sends a command as one line of JSON. The server answers `{"received": id}` when the command is in the
inbox. It answers with the CommandAcked event, as in the journal, when the training has executed the command, which may
take as long as a step. `{"error": text}` says why there will be no answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EliteError
from engine.errors.runs import RUN_CONTROL_UNREACHABLE, RUN_NOT_ACTIVE
from engine.protocol.commands import Command
from engine.protocol.events import CommandAcked
from engine.protocol.wire import Envelope, ProtocolError, decode_command, encode_command, encode_event
from engine.quantities import format_seconds
from engine.runs.journal import decode_line
from engine.runs.run_summary import ACTIVE

if TYPE_CHECKING:
    from engine.runs.run_directory import RunDirectory

_LONGEST_ADDRESS = 103
"""Bytes of a unix socket's path that every system accepts (107 on Linux)."""

_LONGEST_LINE = 1 << 16


class ControlServer:
    """Receives commands from this user's other processes, in a background thread.

    Args:
        path: Path of the socket; one that a dead run left there is replaced.
        deliver: Called with each command, from the server's thread.

    Raises:
        OSError: the filesystem has no sockets.
    """

    def __init__(self, path: Path, deliver: Callable[[Command], None]) -> None:
        self._path = path
        self._deliver = deliver
        self._lock = threading.Lock()
        self._waiting: dict[str, socket.socket] = {}
        self._closing = False
        self._listener = _listen(path)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._buffers: dict[socket.socket, bytes] = {}
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def answer(self, envelope: Envelope) -> None:
        """Forwards a CommandAcked to the client that waits for it. Any thread may call it."""
        if not isinstance(envelope.event, CommandAcked):
            return
        with self._lock:
            connection = self._waiting.pop(envelope.event.command_id, None)
        if connection is not None:
            _send(connection, encode_event(envelope))

    def close(self) -> None:
        """Sends an error to all waiting clients, and removes the socket. A second call does nothing."""
        if self._closing:
            return
        self._closing = True
        self._wake_writer.send(b"x")
        self._thread.join()
        for connection in set(self._waiting.values()):
            _send(connection, json.dumps({"error": "the run ended before it acted on this"}))
        for connection in [*self._buffers, self._listener, self._wake_reader, self._wake_writer]:
            connection.close()
        self._selector.close()
        # The run is over: a name that cannot be removed, which the next attempt replaces, is no reason to fail it.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj is not self._wake_reader:
                    self._read(key.fileobj)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the client has disconnected
        connection.setblocking(False)
        uid = _peer_uid(connection)
        if uid not in (None, os.getuid()):
            _send(connection, json.dumps({"error": f"user {uid} may not control a run of user {os.getuid()}"}))
            connection.close()
            return
        self._buffers[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_LONGEST_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rest = (self._buffers[connection] + data).split(b"\n")
        for line in lines:
            self._take(connection, line)
        self._buffers[connection] = rest
        if not data or len(rest) > _LONGEST_LINE:
            self._forget(connection)

    def _take(self, connection: socket.socket, line: bytes) -> None:
        try:
            command = decode_command(line)
        except ProtocolError as error:
            _send(connection, json.dumps({"error": str(error)}))
            return
        with self._lock:
            self._waiting[command.id] = connection
        self._deliver(command)
        _send(connection, json.dumps({"received": command.id}))

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._waiting = {key: value for key, value in self._waiting.items() if value is not connection}
        self._selector.unregister(connection)
        del self._buffers[connection]
        connection.close()


def send_command(run: RunDirectory, command: Command, timeout: float = 10.0) -> CommandAcked:
    """Sends a command to a run and waits for its answer.

    Args:
        run: The run.
        command: The command; its id must be new.
        timeout: Seconds to wait for the answer.

    Raises:
        EliteError: RUN_NOT_ACTIVE or RUN_CONTROL_UNREACHABLE.
        TimeoutError: the run has the command but has not executed it yet, because it is within a step.
    """
    deadline = time.monotonic() + timeout
    received = False
    with _connect(run, timeout) as connection:
        for line in _lines(connection, encode_command(command), deadline):
            envelope = decode_line(line)
            if envelope is not None and isinstance(envelope.event, CommandAcked):
                return envelope.event
            received = _read_receipt(run, line) or received
    if received and time.monotonic() >= deadline:
        raise TimeoutError(f"run {run.id} has not acted on {type(command).__name__} within {format_seconds(timeout)}")
    raise _unreachable(run, "it closed the connection" if time.monotonic() < deadline else "it does not answer")


def deliver_command(run: RunDirectory, command: Command, timeout: float = 10.0) -> None:
    """Sends a command to a run and returns once the run has it; the answer will be in the journal.

    Raises:
        EliteError: RUN_NOT_ACTIVE or RUN_CONTROL_UNREACHABLE.
    """
    with _connect(run, timeout) as connection:
        for line in _lines(connection, encode_command(command), time.monotonic() + timeout):
            if _read_receipt(run, line):
                return
    raise _unreachable(run, "it does not answer")


def _connect(run: RunDirectory, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        with short_address(run.socket_path) as address:
            _connect_in_turn(connection, address, time.monotonic() + timeout)
    except OSError as error:
        connection.close()
        raise _unreachable(run, error.strerror or str(error)) from error
    return connection


def _connect_in_turn(connection: socket.socket, address: str, deadline: float) -> None:
    """Connects, and retries while other clients fill the server's backlog, for which the kernel returns EAGAIN."""
    while True:
        try:
            connection.connect(address)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _lines(connection: socket.socket, first: str, deadline: float) -> Iterator[bytes]:
    """Sends a line, then yields the reply's lines until the server closes the connection or the deadline passes."""
    buffer = b""
    # The server may already have sent its reason and closed the connection.
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(first.encode() + b"\n")
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            data = connection.recv(_LONGEST_LINE)
        except (TimeoutError, ConnectionResetError):
            return
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        yield from lines


def _read_receipt(run: RunDirectory, line: bytes) -> bool:
    try:
        reply = json.loads(line)
    except ValueError:
        return False
    if isinstance(reply, dict) and "error" in reply:
        raise _unreachable(run, str(reply["error"]))
    return isinstance(reply, dict) and "received" in reply


def not_active(run: RunDirectory, status: str) -> EliteError:
    """Returns the error of a command to a run that has ended: RUN_NOT_ACTIVE, with what can be done with it."""
    done, more = f"`engine attach {run.id}` shows how it ended", f"`engine train --resume {run.id}` continues it"
    return RUN_NOT_ACTIVE(run=run.id, status=status, remedy=done if status == "completed" else more)


def _unreachable(run: RunDirectory, problem: str) -> EliteError:
    status = run.status()
    if status not in ACTIVE:
        return not_active(run, status)
    return RUN_CONTROL_UNREACHABLE(run=run.id, problem=problem)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(path) as address:
            listener.bind(address)
        # Nobody can connect before listen(), so the mode is right before the first one can.
        path.chmod(0o600)
        listener.listen(8)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Yields a path to the socket that fits a socket address, through a symbolic link if its own is too long."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="elite-") as folder:
        link = Path(folder) / "run"
        link.symlink_to(path.parent, target_is_directory=True)
        yield str(link / path.name)


def _peer_uid(connection: socket.socket) -> int | None:
    """Returns the peer's user id; None if the system cannot tell, so that only the socket's mode protects it."""
    if not sys.platform.startswith("linux"):
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def _send(connection: socket.socket, line: str) -> None:
    # A client that has disconnected, or that never reads, gets no answer.
    with contextlib.suppress(OSError):
        connection.send(line.encode() + b"\n")
