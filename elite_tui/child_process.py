"""Runs an `engine` command as a child process of the app."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from engine.errors import one_line


class EngineChild:
    """One `engine` command. One thread executes it; other threads may send it lines and end it.

    Args:
        arguments: The command's arguments.
        serves: Whether it reads lines from standard input until end of file.
        patience: Seconds to exit after closing its output, before SIGKILL; None waits without a limit.
    """

    def __init__(self, *arguments: str, serves: bool = False, patience: float | None = None) -> None:
        self._command = [sys.executable, "-m", "engine", *arguments]
        self._patience = patience
        self._lines: queue.SimpleQueue[str | None] | None = queue.SimpleQueue() if serves else None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._ended = False
        "Whether the app ended it."
        self._said = ""
        "The last line on its standard error."

    def _execute(self, hear: Callable[[dict[str, Any]], None], tell: Callable[[str], None] | None = None) -> int | None:
        """Runs the command and returns its exit status, or None if it was ended before it started.

        Args:
            hear: Called with every JSON object on its standard output.
            tell: Called with every line on its standard error, in another thread.
        """
        with self._lock:
            if self._ended:
                return None
            # In its own session, so that the terminal's signals do not reach it.
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL if self._lines is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        assert process.stdout is not None
        assert process.stderr is not None
        threads = [threading.Thread(target=self._listen, args=(process.stderr, tell), daemon=True)]
        if self._lines is not None:
            threads.append(threading.Thread(target=self._send, args=(process.stdin, self._lines), daemon=True))
        for thread in threads:
            thread.start()
        with process.stdout:
            for line in process.stdout:
                if document := _document(line):
                    hear(document)
        status = self._wait(process)
        self._write(None)
        for thread in threads:
            thread.join()
        process.stderr.close()
        return status

    def _wait(self, process: subprocess.Popen[str]) -> int:
        try:
            return process.wait(self._patience)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _write(self, line: str | None) -> None:
        """Queues a line for the command's standard input without blocking; None closes the input."""
        if self._lines is not None:
            self._lines.put(line)

    def _send(self, stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
        # The child may have exited already; its last line on standard error says why.
        with contextlib.suppress(OSError), stream:
            while (line := lines.get()) is not None:
                stream.write(line + "\n")
                stream.flush()

    def _listen(self, stream: IO[str], tell: Callable[[str], None] | None) -> None:
        for line in stream:
            if text := one_line(line.strip()):
                self._said = text
                if tell is not None:
                    tell(text)

    def _end(self, number: signal.Signals) -> None:
        """Sends a signal; before the start, prevents the start instead."""
        with self._lock:
            self._ended = True
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)


def _document(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
