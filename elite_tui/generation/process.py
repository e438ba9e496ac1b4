"""GenerationProcess: `engine generate --serve` as a child of the app: asked for text, told to stop, let go."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from engine.errors import one_line

PATIENCE = 5.0
"Seconds that the child has to end by itself once nobody asks any more."


class GenerationProcess:
    """Loads the models of a run once. `ask` and `stop` never wait.

    Args:
        reference: A run or a model, as `engine generate` takes it.
        tell: Given every event, in a thread of its own; the last one is {"event": "ended", ...}.
    """

    def __init__(self, reference: str, tell: Callable[[dict[str, Any]], None]) -> None:
        self._command = [sys.executable, "-m", "engine", "generate", reference, "--serve"]
        self._tell = tell
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="generation", daemon=True).start()

    def ask(self, request: dict[str, Any]) -> None:
        """Sends a request."""
        self._lines.put(json.dumps(request))

    def stop(self) -> None:
        """Ends the answer under way."""
        self._lines.put(json.dumps({"stop": True}))

    def close(self) -> None:
        """Ends the process: what it is loading or writing is given up."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.terminate()
        self._lines.put(None)

    def _run(self) -> None:
        with self._lock:
            if self._closed:
                return
            # A session of its own: the terminal's signals do not reach it.
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        threads = [
            threading.Thread(target=self._send, args=(process.stdin,), daemon=True),
            threading.Thread(target=_listen, args=(process.stderr, said), daemon=True),
        ]
        for thread in threads:
            thread.start()
        with process.stdout:
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self._tell(event)
        status = self._wait(process)
        self._lines.put(None)
        for thread in threads:
            thread.join()
        process.stderr.close()
        words = said[-1] if said else f"the process ended with status {status}"
        self._tell({"event": "ended", "status": status, "words": words, "wanted": self._closed})

    def _wait(self, process: subprocess.Popen[str]) -> int:
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _send(self, stream: IO[str]) -> None:
        # The child may have ended: its last words say why.
        with contextlib.suppress(OSError), stream:
            while (line := self._lines.get()) is not None:
                stream.write(line + "\n")
                stream.flush()


def _listen(stream: IO[str], said: list[str]) -> None:
    for line in stream:
        if text := one_line(line.strip()):
            said[:] = [text.removeprefix("engine: ")]
