"""Runs the app in a pseudo-terminal with its own session."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MODES = [(f"\x1b[?{mode}h".encode(), f"\x1b[?{mode}l".encode()) for mode in (1049, 1000, 1003, 2004)] + [
    (b"\x1b[?25l", b"\x1b[?25h")
]


def _without_escapes(output: bytes) -> str:
    return re.sub(rb"\x1b\[[0-?]*[ -/]*[@-~]", b"", output).decode(errors="replace")


class Terminal:
    """The wizard in a pseudo-terminal with its own session, as a terminal emulator starts it."""

    def __init__(
        self, *arguments: str, program: Sequence[str] = ("-m", "elite_tui"), size: tuple[int, int] = (80, 24)
    ) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.modes = termios.tcgetattr(self.master)
        "The terminal's modes before the app."
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none", "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        os.close(slave)
        self._output = b""
        self._all = b""

    @property
    def text(self) -> str:
        """Returns the output since the last key, without escape sequences."""
        return _without_escapes(self._output)

    def text_after_leaving(self) -> str:
        """Returns the output after the app left the alternate screen."""
        _, left, after = self._output.partition(b"\x1b[?1049l")
        assert left
        return _without_escapes(after)

    def read(self, seconds: float) -> None:
        """Reads the app's output; an unread terminal would stall it."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                try:
                    data = os.read(self.master, 65_536)
                except OSError:
                    return
                self._output += data
                self._all += data

    def wait_for(self, condition, seconds: float) -> None:
        """Reads until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.text[-4000:]
            self.read(0.1)

    def press(self, keys: bytes) -> None:
        """Sends keys."""
        self._output = b""
        os.write(self.master, keys)

    def is_sane(self) -> bool:
        """Returns whether the terminal is restored: line editing, normal screen, visible cursor, no mouse reports."""
        left = all(self._all.rfind(off) > self._all.rfind(on) for on, off in _MODES if on in self._all)
        return left and termios.tcgetattr(self.master) == self.modes

    def close(self) -> None:
        """Ends the app and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
