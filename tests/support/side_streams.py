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
from itertools import product

import torch

from engine.streaming import copies

_POISON = 0xFF


class Event:
    """Stands for a torch.cuda.Event after one copy."""

    def __init__(self, stream):
        self._stream = stream
        self.happened = False

    def query(self):
        """Whether the copy has run."""
        return self.happened

    def synchronize(self):
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

    def __init__(self, late, lock, chance):
        self._late, self.lock, self._chance = late, lock, chance
        self._waiting = deque()
        self.copies = 0
        "Copies begun so far."

    def begin(self, pairs, after):
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

    def run_one(self):
        """Runs the oldest copy."""
        pairs, event = self._waiting.popleft()
        for target, source in pairs:
            target.copy_(source)
        event.happened = True


class Streams:
    """Stands for CopyStreams."""

    def __init__(self, to_device, to_host, seed=0):
        lock, chance = threading.RLock(), random.Random(seed)
        self.to_device, self.to_host = Stream(to_device, lock, chance), Stream(to_host, lock, chance)


def poison(tensor):
    """Overwrites a tensor with bytes that nobody would take for values."""
    tensor.view(torch.uint8).fill_(_POISON)


SCHEDULES = {
    **{f"to the device {a}, home {b}": (x, y) for (a, x), (b, y) in product((("early", 0), ("late", 1)), repeat=2)},
    "by chance": (0.5, 0.5),
}
"""How late copies run on each stream: the four extremes, and a mixture."""


@contextlib.contextmanager
def simulated(schedule):
    """Within, streamed steps on a CPU copy as on a GPU, by one of SCHEDULES; yields the list of their streams."""
    real = copies.copy_streams, copies.begin_copy, copies.wait_for
    made = []

    def copy_streams(device):
        made.append(Streams(*SCHEDULES[schedule], seed=len(made)))
        return made[-1]

    def begin_copy(stream, pairs, after=()):
        return stream.begin(list(pairs), list(after))

    copies.copy_streams, copies.begin_copy, copies.wait_for = copy_streams, begin_copy, Event.synchronize
    try:
        yield made
    finally:
        copies.copy_streams, copies.begin_copy, copies.wait_for = real
