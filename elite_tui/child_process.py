"""EngineChild: an `engine` command as a child of the app: started, listened to, ended."""

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
    """One `engine` command. It is executed in one thread, and may be given lines and ended from others.

    Args:
        arguments: Of the command.
        serves: Whether it reads lines, until there are no more.
        patience: Seconds that it has to end once its output is closed; None waits as long as it takes.
    """

    def __init__(self, *arguments: str, serves: bool = False, patience: float | None = None) -> None:
        self._command = [sys.executable, "-m", "engine", *arguments]
        self._patience = patience
        self._lines: queue.SimpleQueue[str | None] | None = queue.SimpleQueue() if serves else None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._ended = False
        "Whether somebody here ended it."
        self._said = ""
        "The last line of its standard error."

    def _execute(self, hear: Callable[[dict[str, Any]], None], tell: Callable[[str], None] | None = None) -> int | None:
        """Runs the command, and returns its exit status; None where it was ended before it began.

        Args:
            hear: Called with every JSON object that it prints.
            tell: Called, in another thread, with every line for people.
        """
        with self._lock:
            if self._ended:
                return None
            # A session of its own: the terminal's signals do not reach it.
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
        """Hands the command a line, without waiting; None is the end of its input."""
        if self._lines is not None:
            self._lines.put(line)

    def _send(self, stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
        # The child may have ended: its last words say why.
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
        """Sends a signal, now or instead of the beginning."""
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
