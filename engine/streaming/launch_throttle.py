"""Keeps the CPU at most a few tiles ahead of the GPU."""

from __future__ import annotations

from collections import deque

import torch


class LaunchThrottle:
    """Bounds how much work is enqueued.

    Progress is then true, a cancellation prompt, and memory that side streams still use comes back steadily.
    """

    _AHEAD = 2

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: deque[torch.cuda.Event] = deque()

    def tick(self) -> None:
        """A tile was enqueued; waits until all but the last two are done."""
        if not self._cuda:
            return
        self._events.append(torch.cuda.current_stream().record_event())
        if len(self._events) > self._AHEAD:
            self._events.popleft().synchronize()
