"""EngineProcess: an `engine` command as a child of the app, which can be stopped and may fail without harm."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from engine import errors

REMEDY = "the command does the same without the app; plans go by predictions until then"


class EngineProcess:
    """One `engine` command that measures something. Make it, `run` it in a thread, `stop` it from another."""

    def __init__(self, *arguments: str) -> None:
        self._name = arguments[0]
        self._command = [sys.executable, "-m", "engine", *arguments, "--json"]
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, tell: Callable[[str], None]) -> dict[str, Any]:
        """Runs the command, and returns the document that it prints.

        Args:
            tell: Called with a line for people whenever there is progress.

        Raises:
            EliteError: MEASURING_FAILED, also where it was stopped.
        """
        with self._lock:
            if self._stopped:
                raise self._failure("it was stopped")
            # A session of its own: the terminal's signals do not reach it.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        listener = threading.Thread(target=_listen, args=(process.stderr, said, tell), daemon=True)
        listener.start()
        found: dict[str, Any] | None = None
        with process.stdout:
            for line in process.stdout:
                found = _document(line) or found
        status = process.wait()
        listener.join()
        process.stderr.close()
        if self._stopped:
            raise self._failure("it was stopped")
        if status != 0 or found is None:
            told = found or {}
            words = told.get("message") or (said[-1] if said else f"it ended with status {status}")
            raise self._failure(words, told.get("remedy", ""))
        return found

    def _failure(self, problem: str, remedy: str = "") -> errors.EliteError:
        return errors.MEASURING_FAILED(command=self._name, problem=problem, remedy=remedy or REMEDY)

    def stop(self) -> None:
        """Ends the process and all that it started. `run` then raises."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                # As ctrl+c would: it then ends the measuring child, which has a session of its own.
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGINT)


def _listen(stream: IO[str], said: list[str], tell: Callable[[str], None]) -> None:
    for line in stream:
        text = errors.one_line(line.strip())
        if text:
            said[:] = [text]
            tell(text)


def _document(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
