"""ProfileProcess: `engine profile` as a child of the app, which can be stopped, and whose failure is only a message."""

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


class ProfileProcess:
    """One measurement of this machine. Make it, `run` it in a thread, `stop` it from another."""

    def __init__(self, arguments: tuple[str, ...] = ("profile", "--json")) -> None:
        self._command = [sys.executable, "-m", "engine", *arguments]
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, tell: Callable[[str], None]) -> dict[str, Any]:
        """Measures, and returns the document that `engine profile --json` prints.

        Args:
            tell: Called with a line for people whenever there is progress.

        Raises:
            EliteError: PROFILE_FAILED, also where it was stopped.
        """
        with self._lock:
            if self._stopped:
                raise errors.PROFILE_FAILED(problem="it was stopped")
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
            raise errors.PROFILE_FAILED(problem="it was stopped")
        if status != 0 or found is None:
            words = (found or {}).get("message") or (said[-1] if said else f"it ended with status {status}")
            raise errors.PROFILE_FAILED(problem=words)
        return found

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
