"""Simulates a device's side streams on a CPU, where copies are real and complete at arbitrary times.

On a CPU, tiles and pages are used in place, and copies that would be in flight on a GPU are complete. The streamed
step's GPU code runs here (pinned tiles, pages, streamed weights, spill files), over streams that run each copy at
once, or only when somebody waits for it. A GPU does anything in between. Until a copy has run, its target holds 0xFF
bytes, which are NaN in every float type. Code that reads too early, or hands out memory still in use, gets those.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from engine.streaming import copies

_POISON = 0xFF
Pair = tuple[Tensor, Tensor]
"Target and source of a copy."


class Event:
    """Stands in for the torch.cuda.Event after one copy."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.happened = False

    def query(self) -> bool:
        """Returns whether the copy has run."""
        return self.happened

    def synchronize(self) -> None:
        """Runs all copies up to this one."""
        with self._stream.lock:
            while not self.happened:
                self._stream.run_one()


class Stream:
    """Runs copies in the order of their start.

    Args:
        late: Probability that a copy waits until it is needed, from 0 (never) to 1 (always).
        lock: Shared by both streams, as spill files wait for copies in threads of their own.
        chance: Random number generator.
    """

    def __init__(self, late: float, lock: threading.RLock, chance: random.Random) -> None:
        self._late, self.lock, self._chance = late, lock, chance
        self._waiting: deque[tuple[Sequence[Pair], Event]] = deque()
        self.copies = 0
        "Copies started so far."

    def begin(self, pairs: Sequence[Pair], after: Sequence[Event]) -> Event:
        """Starts a copy; runs the copies that it must follow first."""
        for event in after:
            event.synchronize()
        with self.lock:
            for target, _ in pairs:
                poison(target)
            event = Event(self)
            self._waiting.append((pairs, event))
            self.copies += 1
            if self._chance.random() >= self._late:
                event.synchronize()
        return event

    def run_one(self) -> None:
        """Runs the oldest copy."""
        pairs, event = self._waiting.popleft()
        for target, source in pairs:
            target.copy_(source)
        event.happened = True


class Streams:
    """Stands in for CopyStreams."""

    def __init__(self, to_device: float, to_host: float, seed: int = 0) -> None:
        lock, chance = threading.RLock(), random.Random(seed)
        self.to_device, self.to_host = Stream(to_device, lock, chance), Stream(to_host, lock, chance)


def poison(tensor: Tensor) -> None:
    """Overwrites a tensor with bytes that no test mistakes for values."""
    tensor.view(torch.uint8).fill_(_POISON)


SCHEDULES: dict[str, tuple[float, float]] = {
    **{f"to the device {a}, home {b}": (x, y) for (a, x), (b, y) in product((("early", 0), ("late", 1)), repeat=2)},
    "by chance": (0.5, 0.5),
}
"""Delay probabilities of copies on each stream: the four extremes, and a mixture."""


@contextlib.contextmanager
def simulated(schedule: str) -> Iterator[list[Streams]]:
    """Makes streamed steps on a CPU copy as on a GPU, by one of SCHEDULES; yields the list of their streams."""
    module: Any = copies
    real = module.copy_streams, module.begin_copy, module.wait_for
    made: list[Streams] = []

    def copy_streams(_: torch.device) -> Streams:
        made.append(Streams(*SCHEDULES[schedule], seed=len(made)))
        return made[-1]

    def begin_copy(stream: Stream, pairs: Iterable[Pair], after: Iterable[Event] = ()) -> Event:
        return stream.begin(list(pairs), list(after))

    module.copy_streams, module.begin_copy, module.wait_for = copy_streams, begin_copy, Event.synchronize
    try:
        yield made
    finally:
        module.copy_streams, module.begin_copy, module.wait_for = real
