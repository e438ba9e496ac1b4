"""Ends a rank when other ranks are lost or silent, so that no rank waits for ever.

Every rank increments a counter in the agents' store. Rank 0 watches all others, and the others watch rank 0. The
counter stops for a stopped process, for a host that dropped off the network, and for a kernel that hangs with the GIL
held. A rank that computes for an hour keeps counting, because the counter runs in its own thread.
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
    """Increments this rank's counter and watches those of others, in a thread.

    Args:
        host, port: Address of the agents' store.
        rank, size: This rank and the number of ranks.
        silent_seconds: Seconds after which an unchanged counter means a lost rank.
        lost: Called once, in the watch's thread, with the lost rank, or with None if the store itself is gone.
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
        # A separate connection, because the process group's waits for minutes with its lock held.
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
        self._store = PrefixStore("elite-watch", store)
        self._rank, self._watched = rank, [r for r in range(size) if (r == 0) != (rank == 0)]
        self._silent, self._lost = silent_seconds, lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops watching, and sets this rank's counter to -1, so that other ranks do not report it lost."""
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
        with contextlib.suppress(RuntimeError):  # the agent has already exited
            self._store.set(f"{self._rank}", "-1")
