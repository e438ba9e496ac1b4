"""Runs an `engine` command once; the user can stop it, and its failure harms nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from elite_tui.child_process import EngineChild
from engine.errors import EliteError
from engine.errors.planning import MEASURING_FAILED

REMEDY = "the command does the same without the app; plans go by predictions until then"


class EngineProcess(EngineChild):
    """A command that runs once. Call `run` in one thread and `stop` from another."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments, "--json")
        self._name = arguments[0]
        self.error = ""
        "Code of the command's own error, once `run` has raised."

    def run(self, tell: Callable[[str], None]) -> dict[str, Any]:
        """Runs the command and returns the JSON document that it prints.

        Args:
            tell: Called with each progress line.

        Raises:
            EliteError: MEASURING_FAILED, also if it was stopped.
        """
        found: list[dict[str, Any]] = []
        status = self._execute(found.append, tell)
        if self._ended:
            raise self._failure("it was stopped")
        told = found[-1] if found else {}
        self.error = str(told.get("error") or "") if status != 0 else ""
        if status != 0 or not found:
            words = told.get("message") or self._said or f"it ended with status {status}"
            raise self._failure(words, told.get("remedy", ""))
        return told

    def _failure(self, problem: str, remedy: str = "") -> EliteError:
        return MEASURING_FAILED(command=self._name, problem=problem, remedy=remedy or REMEDY)

    def stop(self) -> None:
        """Interrupts the process, which ends its children. `run` then raises."""
        # SIGINT, as from ctrl+c: the command then ends the measuring child, which has its own session.
        self._end(signal.SIGINT)
