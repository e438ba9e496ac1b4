"""Keeps the CPU at most a few tiles ahead of the GPU."""

from __future__ import annotations

from collections import deque

import torch


class LaunchThrottle:
    """Bounds the work enqueued on the GPU.

    This keeps reported progress true and cancellation prompt, and memory used by side streams is freed steadily.
    """

    _AHEAD = 2

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: deque[torch.cuda.Event] = deque()

    def tick(self) -> None:
        """Records that a tile was enqueued, and waits until all but the last two are done."""
        if not self._cuda:
            return
        self._events.append(torch.cuda.current_stream().record_event())
        if len(self._events) > self._AHEAD:
            self._events.popleft().synchronize()
