"""Handles SIGINT and SIGTERM of the training process. The first one requests a stop, the second ends it immediately.

Python runs signal handlers in the main thread between two bytecodes, which a long kernel call delays for minutes. So
the handlers do nothing, and a thread reads the signal numbers from the wakeup descriptor.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOST_COUNTED = 2
"Signals that have a meaning: stop with a checkpoint, and end immediately."


class Interrupts:
    """Counts SIGINT and SIGTERM within its context instead of raising KeyboardInterrupt wherever the program is.

    The third one raises it: whatever blocks the program should not keep a person in it.

    Attributes:
        count: Signals so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._add) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _add(self, *_: object) -> None:
        self.count += 1
        if self.count > _MOST_COUNTED:
            raise KeyboardInterrupt


def block_stop_signals() -> set[signal.Signals]:
    """Blocks SIGINT, SIGTERM and SIGHUP in this thread and its children; returns the previous mask."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, signal.SIGHUP})
    return {signal.Signals(number) for number in mask}


def restore_signals(mask: set[signal.Signals]) -> None:
    """Undoes `block_stop_signals`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def watch_stop_signals(react: Callable[[signal.Signals], None]) -> None:
    """Calls `react` from a thread for each SIGINT and SIGTERM from now on, and ignores SIGHUP.

    Must be called in the main thread. Signals that `block_stop_signals` blocked arrive now.
    """
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
    os.set_blocking(readable, True)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    # Ignored, because the process has its own session and log and does not depend on a terminal.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def watch() -> None:
        while True:
            for number in os.read(readable, 16):
                if number in STOP_SIGNALS:
                    react(signal.Signals(number))

    threading.Thread(target=watch, name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGHUP})
