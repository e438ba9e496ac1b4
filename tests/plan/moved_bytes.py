"""Counts the bytes that a streamed step really moves between a device and the homes of its data, by what they are.

The step runs on a CPU with the copies of a GPU (tests/support/side_streams.py). A copy is told by the memory at its
host end, a file by its array; both are told apart after the step, once all arrays exist.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict

from engine.streaming import copies
from engine.streaming.disk_tiles import DiskTiles
from engine.streaming.kv_cache import HostKvCache
from engine.streaming.step import StreamedStep
from tests.support.side_streams import simulated


class MovedBytes:
    """Bytes of each kind, in each direction, and those written to files."""

    def __init__(self) -> None:
        self._copied: dict[tuple[str, int], int] = defaultdict(int)
        self._filed: dict[tuple[str, int], int] = defaultdict(int)
        self._alive: list[object] = []

    @contextlib.contextmanager
    def counting(self):
        with simulated("to the device early, home early") as made, contextlib.ExitStack() as stack:
            begin = copies.begin_copy

            def begin_copy(stream, pairs, after=()):
                pairs = list(pairs)
                to_device = any(stream is each.to_device for each in made)
                for target, source in pairs:
                    home = (source if to_device else target).untyped_storage()
                    self._alive.append(home)
                    direction = "read" if to_device else "written"
                    self._copied[direction, home.data_ptr()] += source.numel() * source.element_size()
                return begin(stream, pairs, after)

            copies.begin_copy = begin_copy
            for name, direction in (("write", "written"), ("begin_load", "read")):
                self._count_files(stack, name, direction)
            yield self

    def _count_files(self, stack, name, direction):
        real = getattr(DiskTiles, name)

        def counted(array, index, value):
            span = array.span(index)
            self._alive.append(array)
            self._filed[direction, id(array)] += (span.stop - span.start) * array.width * array.dtype.itemsize
            return real(array, index, value)

        setattr(DiskTiles, name, counted)
        stack.callback(setattr, DiskTiles, name, real)

    def forget(self):
        """Leaves out what was moved so far."""
        self._copied.clear()
        self._filed.clear()

    def by_kind(self, step: StreamedStep) -> dict[str, dict[str, int]]:
        """Bytes read and written of each kind; `files`: those of files alone."""
        workspace = step.streamed.workspace
        hidden, saved = workspace.hidden, workspace.attention.saved
        arrays = {
            "hidden": [a for states in (*hidden._kept, *hidden._scratch) for a in states.components],
            "gradient": [hidden._top],
            "inputs": workspace.layer_inputs._arrays,
            "outputs": [] if saved is None else [a for pair in saved._arrays.values() for a in pair],
            "saved keys": [] if saved is None else [a for pair in saved._keys_values.values() for a in pair],
        }
        pages = [cache for cache in workspace.attention.caches if isinstance(cache, HostKvCache)]
        tensors = {
            "keys": [tensor for cache in pages for tensor in cache._kv],
            "key gradients": [tensor for cache in pages for tensor in cache._grad],
        }
        names, files = {}, {}
        for kind, found in arrays.items():
            files |= {id(array): kind for array in found if isinstance(array, DiskTiles)}
            tensors[kind] = [array._data for array in found if not isinstance(array, DiskTiles)]
        for kind, found in tensors.items():
            names |= {tensor.untyped_storage().data_ptr(): kind for tensor in found}
        moved: dict[str, dict[str, int]] = {kind: {"read": 0, "written": 0, "files": 0} for kind in tensors}
        for (direction, place), size in self._copied.items():
            if place in names:
                moved[names[place]][direction] += size
        for (direction, number), size in self._filed.items():
            moved[files[number]][direction] += size
            moved[files[number]]["files"] += size if direction == "written" else 0
        return moved
