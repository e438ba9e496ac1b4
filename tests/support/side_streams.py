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
from itertools import product

import torch

from engine.streaming import copies

_POISON = 0xFF


class Event:
    """Stands in for the torch.cuda.Event after one copy."""

    def __init__(self, stream):
        self._stream = stream
        self.happened = False

    def query(self):
        """Returns whether the copy has run."""
        return self.happened

    def synchronize(self):
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

    def __init__(self, late, lock, chance):
        self._late, self.lock, self._chance = late, lock, chance
        self._waiting = deque()
        self.copies = 0
        "Copies started so far."

    def begin(self, pairs, after):
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

    def run_one(self):
        """Runs the oldest copy."""
        pairs, event = self._waiting.popleft()
        for target, source in pairs:
            target.copy_(source)
        event.happened = True


class Streams:
    """Stands in for CopyStreams."""

    def __init__(self, to_device, to_host, seed=0):
        lock, chance = threading.RLock(), random.Random(seed)
        self.to_device, self.to_host = Stream(to_device, lock, chance), Stream(to_host, lock, chance)


def poison(tensor):
    """Overwrites a tensor with bytes that no test mistakes for values."""
    tensor.view(torch.uint8).fill_(_POISON)


SCHEDULES = {
    **{f"to the device {a}, home {b}": (x, y) for (a, x), (b, y) in product((("early", 0), ("late", 1)), repeat=2)},
    "by chance": (0.5, 0.5),
}
"""Delay probabilities of copies on each stream: the four extremes, and a mixture."""


@contextlib.contextmanager
def simulated(schedule):
    """Makes streamed steps on a CPU copy as on a GPU, by one of SCHEDULES; yields the list of their streams."""
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
