"""Ends a rank whose fellows are gone or silent: no rank may wait for ever.

Every rank counts up a number in the agents' store. Rank 0 watches all others, the others watch rank 0. A process that
is stopped, a host that dropped off the network, a kernel that hangs with the interpreter locked: their number stands
still. A rank that merely computes for an hour counts on, as the counter is a thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

_BEAT_SECONDS = 2.0


class Watch:
    """Counts for this rank and watches others, in a thread.

    Args:
        host, port: The agents' store.
        rank, size: This rank among all.
        silent_seconds: How long a number may stand still.
        lost: Called once, in the watch's thread, with the rank that fell silent; None where the store itself is gone.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        rank: int,
        size: int,
        silent_seconds: float,
        lost: Callable[[int | None], None],
    ) -> None:
        # A connection of its own: the process group's waits for minutes with its lock held.
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
        self._store = PrefixStore("elite-watch", store)
        self._rank, self._watched = rank, [r for r in range(size) if (r == 0) != (rank == 0)]
        self._silent, self._lost = silent_seconds, lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops watching; this rank's number is taken back, so that nobody misses it."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        began = time.monotonic()
        seen = dict.fromkeys(self._watched, (-1, began))
        count = 0
        while not self._stop.wait(_BEAT_SECONDS):
            count += 1
            try:
                self._store.set(f"{self._rank}", str(count))
                for rank in self._watched:
                    key = f"{rank}"
                    value = int(self._store.get(key)) if self._store.check([key]) else 0
                    if value != seen[rank][0]:
                        seen[rank] = value, time.monotonic()
                    elif value >= 0 and time.monotonic() - seen[rank][1] > self._silent:
                        self._lost(rank)
                        return
            except RuntimeError:
                if not self._stop.is_set():
                    self._lost(None)
                return
        with contextlib.suppress(RuntimeError):  # the agent went first
            self._store.set(f"{self._rank}", "-1")
