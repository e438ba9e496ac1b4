"""Counts the bytes that tensors of one device hold, operation by operation; with fake tensors no memory is needed."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_BLOCK = 512  # what CUDA's caching allocator rounds up to


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made inside this context and that are still alive.

    Args:
        device_type: Whose storages count.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type
        self.now = self.peak = 0

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
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        weakref.finalize(storage, self._gone, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size

    def restart(self) -> None:
        """A new peak begins."""
        self.peak = self.now
