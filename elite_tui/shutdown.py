"""Ends the app on signals, a lost terminal, or a crash of its own.

None of these ends a run, whose process has its own session and log.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from elite_tui.runs.open_runs import OpenRun
    from elite_tui.state import AppState


def watch_signals(leave: Callable[[], None], save: Callable[[], None]) -> None:
    """Installs signal handlers.

    SIGTERM restores the terminal and leaves; a second one ends the process at once. SIGHUP saves the draft first.

    Must be called in the main thread, with the event loop running.

    Args:
        leave: Closes the app; called in its event loop.
        save: Writes the draft; called at once.
    """
    loop = asyncio.get_running_loop()

    def terminated(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(leave)

    def hung_up(number: int, _: FrameType | None) -> None:
        # The terminal is gone, and anything that waits for it to take output would block forever.
        save()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGHUP, hung_up)


def farewell(state: AppState, what: str) -> str:
    """Formats one line about the active runs; "" if there is none.

    Args:
        state: The app's state.
        what: State of the run on screen. The others "go on".
    """
    active = [run for run in state.open_runs if not run.view.ended]
    if not active:
        return ""
    sentences = [f"run {run.view.run_id} {what if run is state.open_runs.current else 'goes on'}" for run in active]
    commands = " ".join(reference_of(run) for run in active)
    return f"{', '.join(sentences)}; watch with `elite-tui monitor {commands}`"


def reference_of(run: OpenRun) -> str:
    """Returns the command-line reference of a run: its id, or the folder of a copy or a mount."""
    elsewhere = run.access is not None and not run.access.here
    return shlex.quote(str(run.path) if elsewhere else run.view.run_id)
