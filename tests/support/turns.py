"""One process at a time, in an order that a seed decides: real processes that stop before each file operation.

Every process that takes part connects to a scheduler and waits for its turn before it opens, writes, renames, removes,
locks or sleeps. A process that it forks takes part from its first statement. A lock that is taken, and a pipe that is
empty, cost a turn instead of a wait. Threads other than the main one run freely.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import random
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PATCHED = ("open", "write", "rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "scandir", "utime", "ftruncate",
            "stat")  # fmt: skip
_STUCK_S = 60.0
_MOST_TURNS = 20_000


class StuckError(AssertionError):
    """No process takes its turn, or they never end."""


class Player:
    """A process's side. One in a process; its forks get their own."""

    def __init__(self, address: Path, name: str) -> None:
        self._address, self._name = str(address), name
        self._socket: socket.socket | None = None
        self._inside = False

    def join(self) -> None:
        """Takes part from now on."""
        self._connect()
        for name in _PATCHED:
            setattr(os, name, self._in_turn(getattr(os, name), name))
        io.open = self._in_turn(io.open, "open")
        fcntl.flock = self._flock(fcntl.flock)
        time.sleep = lambda _: self.turn("sleep")
        os.register_at_fork(after_in_parent=lambda: self.turn("fork"), after_in_child=self._forked)
        self.turn("begin")

    def turn(self, what: str) -> None:
        """Waits for this process's turn."""
        if self._socket is None or self._inside or threading.current_thread() is not threading.main_thread():
            return
        self._inside = True
        try:
            self._socket.send(what.encode())
            if not self._socket.recv(1):
                os._exit(70)  # the scheduler has gone
        finally:
            self._inside = False

    def wait(self, ready: Callable[[], Any]) -> Any:
        """Takes turns until something is ready."""
        while not (found := ready()):
            self.turn("wait")
        return found

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(self._address)
        self._socket.send(f"{self._name} {os.getpid()}".encode())

    def _forked(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._name, self._inside = f"{self._name}'s child", False
        self._connect()
        self.turn("begin")

    def _in_turn(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.turn(name)
            return call(*args, **options)

        return called

    def _flock(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(fd: int, operation: int) -> None:
            while True:
                self.turn("flock")
                with contextlib.suppress(BlockingIOError):
                    call(fd, operation | fcntl.LOCK_NB)
                    return

        return called


class Scheduler:
    """Gives turns until every process has ended.

    Attributes:
        history: Process, what it was about to do, for each turn.
    """

    def __init__(self, address: Path, rng: random.Random) -> None:
        self.history: list[tuple[str, str]] = []
        self._rng = rng
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(address))
        self._listener.listen(64)
        self._names: dict[socket.socket, tuple[str, int]] = {}
        self._parked: dict[socket.socket, str] = {}

    def run(self, players: int, kill: Callable[[str], float] = lambda _: 0.0) -> int:
        """Gives turns; returns how many processes it killed.

        Args:
            players: Processes that join by themselves.
            kill: Chance for a process of this name to be killed at its turn.

        Raises:
            StuckError: a process does not come to its next turn, or there is no end.
        """
        killed = 0
        self._accept(players)
        while self._names:
            while len(self._parked) < len(self._names):
                self._hear()
            if not self._names:
                break
            if len(self.history) > _MOST_TURNS:
                raise StuckError(f"no end: {self.history[-20:]}")
            # By name, as the order of arrival is the kernel's.
            chosen = self._rng.choice(sorted(self._parked, key=lambda one: self._names[one]))
            name, process = self._names[chosen]
            what = self._parked.pop(chosen)
            self.history.append((name, what))
            if self._rng.random() < kill(name):
                os.kill(process, signal.SIGKILL)
                killed += 1
                continue
            chosen.send(b"g")
        self._listener.close()
        return killed

    def _accept(self, count: int) -> None:
        self._listener.settimeout(_STUCK_S)
        for _ in range(count):
            connection, _ = self._listener.accept()
            name, process = connection.recv(4096).decode().rsplit(" ", 1)
            self._names[connection] = (name, int(process))

    def _hear(self) -> None:
        """Takes the next message of a process that runs, or its end."""
        running = [one for one in self._names if one not in self._parked]
        with selectors.DefaultSelector() as selector:
            for one in running:
                selector.register(one, selectors.EVENT_READ)
            found = selector.select(_STUCK_S)
        if not found:
            raise StuckError(f"not heard of: {[self._names[one] for one in running]}, after {self.history[-10:]}")
        for key, _ in found:
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            with contextlib.suppress(ConnectionResetError):
                if message := connection.recv(4096).decode():
                    self._parked[connection] = message
                    if message == "fork":
                        self._accept(1)
                    continue
            del self._names[connection]
            connection.close()
