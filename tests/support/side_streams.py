"""Side streams of a device that is simulated on a CPU, where copies are copies and arrive when they like.

On a CPU tiles and pages are seen where they are, and what is in flight on a GPU has always arrived. Here the streamed
step's own code for a GPU runs (pinned tiles, pages, streamed weights, spill files), over streams that run each copy at
once, or not before somebody waits for it. A GPU does anything in between. Until a copy has run, its target holds
0xFF bytes, which are NaN as any float: whoever reads too early, or hands out what is still in use, gets those.
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
    """Stands for a torch.cuda.Event after one copy."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.happened = False

    def query(self) -> bool:
        """Whether the copy has run."""
        return self.happened

    def synchronize(self) -> None:
        """Runs all copies up to this one."""
        with self._stream.lock:
            while not self.happened:
                self._stream.run_one()


class Stream:
    """Copies in the order in which they were begun.

    Args:
        late: How likely a copy is to wait until it is needed: 0 for never, 1 for always.
        lock: Of both streams: spill files wait for copies in threads of their own.
        chance: Decides.
    """

    def __init__(self, late: float, lock: threading.RLock, chance: random.Random) -> None:
        self._late, self.lock, self._chance = late, lock, chance
        self._waiting: deque[tuple[Sequence[Pair], Event]] = deque()
        self.copies = 0
        "Copies begun so far."

    def begin(self, pairs: Sequence[Pair], after: Sequence[Event]) -> Event:
        """Begins a copy; what it has to come after is run first."""
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
    """Stands for CopyStreams."""

    def __init__(self, to_device: float, to_host: float, seed: int = 0) -> None:
        lock, chance = threading.RLock(), random.Random(seed)
        self.to_device, self.to_host = Stream(to_device, lock, chance), Stream(to_host, lock, chance)


def poison(tensor: Tensor) -> None:
    """Overwrites a tensor with bytes that nobody would take for values."""
    tensor.view(torch.uint8).fill_(_POISON)


SCHEDULES: dict[str, tuple[float, float]] = {
    **{f"to the device {a}, home {b}": (x, y) for (a, x), (b, y) in product((("early", 0), ("late", 1)), repeat=2)},
    "by chance": (0.5, 0.5),
}
"""How late copies run on each stream: the four extremes, and a mixture."""


@contextlib.contextmanager
def simulated(schedule: str) -> Iterator[list[Streams]]:
    """Within, streamed steps on a CPU copy as on a GPU, by one of SCHEDULES; yields the list of their streams."""
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
