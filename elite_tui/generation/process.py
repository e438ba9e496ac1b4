"""Runs `engine generate --serve` as a child process of the app."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import Any

from elite_tui.child_process import EngineChild

PATIENCE = 5.0
"Seconds that the child has to exit by itself after its output is closed."


class GenerationProcess(EngineChild):
    """Loads a run's models once. `ask` and `stop` never block.

    Args:
        reference: A run or a model, as `engine generate` takes it.
        tell: Called with every event in another thread; the last one is {"event": "ended", ...}.
    """

    def __init__(self, reference: str, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__("generate", reference, "--serve", serves=True, patience=PATIENCE)
        self._tell = tell
        threading.Thread(target=self._run, name="generation", daemon=True).start()

    def ask(self, request: dict[str, Any]) -> None:
        """Sends a request."""
        self._write(json.dumps(request))

    def stop(self) -> None:
        """Stops the current answer."""
        self._write(json.dumps({"stop": True}))

    def close(self) -> None:
        """Terminates the process, abandoning any load or answer in progress."""
        self._end(signal.SIGTERM)
        self._write(None)

    def _run(self) -> None:
        status = self._execute(self._tell)
        if status is None:
            return
        words = self._said.removeprefix("engine: ") or f"the process ended with status {status}"
        self._tell({"event": "ended", "status": status, "words": words, "wanted": self._ended})
