"""Counts the bytes that tensors of one device hold, operation by operation; with fake tensors no memory is needed."""

from __future__ import annotations

import traceback
import weakref
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_BLOCK = 512  # what CUDA's caching allocator rounds up to


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made inside this context and that are still alive.

    Args:
        device_type: Whose storages count.
        places: Whether to remember the line of code that made each (for people; slow).
    """

    def __init__(self, device_type: str, *, places: bool = False) -> None:
        super().__init__()
        self._device_type, self._places = device_type, places
        self._alive: dict[int, tuple[int, str]] = {}
        self._serial = 0
        self.now = self.peak = 0
        self.at_peak: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self._device_type:
                self._see(leaf.untyped_storage())
        return result

    def ignore(self, *tensors: torch.Tensor) -> None:
        """These were there before."""
        for tensor in tensors:
            tensor.untyped_storage()._live_bytes = True

    def _see(self, storage: torch.UntypedStorage) -> None:
        if hasattr(storage, "_live_bytes") or not storage.nbytes():
            return
        storage._live_bytes = True
        self._serial += 1
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._alive[self._serial] = (size, _line() if self._places else "")
        weakref.finalize(storage, self._gone, self._serial)
        self.now += size
        if self.now > self.peak:
            self.peak = self.now
            if self._places:
                self.at_peak = Counter((place, size) for size, place in self._alive.values())

    def _gone(self, serial: int) -> None:
        self.now -= self._alive.pop(serial)[0]

    def restart(self) -> None:
        """A new peak begins."""
        self.peak = self.now


def _line() -> str:
    frames = [
        f
        for f in traceback.extract_stack()
        if "/engine/" in f.filename
        or "/transformers/" in f.filename
        or "/peft/" in f.filename
        or "plan/live" in f.filename
        and "fused" in f.name
    ]
    return " < ".join(f"{f.filename.rsplit('/', 1)[1]}:{f.lineno} {f.name}" for f in reversed(frames[-3:]))
