"""GenerationProcess: `engine generate --serve` as a child of the app: asked for text, told to stop, let go."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import Any

from elite_tui.child_process import EngineChild

PATIENCE = 5.0
"Seconds that the child has to end by itself once nobody asks any more."


class GenerationProcess(EngineChild):
    """Loads the models of a run once. `ask` and `stop` never wait.

    Args:
        reference: A run or a model, as `engine generate` takes it.
        tell: Given every event, in a thread of its own; the last one is {"event": "ended", ...}.
    """

    def __init__(self, reference: str, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__("generate", reference, "--serve", serves=True, patience=PATIENCE)
        self._tell = tell
        threading.Thread(target=self._run, name="generation", daemon=True).start()

    def ask(self, request: dict[str, Any]) -> None:
        """Sends a request."""
        self._write(json.dumps(request))

    def stop(self) -> None:
        """Ends the answer under way."""
        self._write(json.dumps({"stop": True}))

    def close(self) -> None:
        """Ends the process: what it is loading or writing is given up."""
        self._end(signal.SIGTERM)
        self._write(None)

    def _run(self) -> None:
        status = self._execute(self._tell)
        if status is None:
            return
        words = self._said.removeprefix("engine: ") or f"the process ended with status {status}"
        self._tell({"event": "ended", "status": status, "words": words, "wanted": self._ended})
