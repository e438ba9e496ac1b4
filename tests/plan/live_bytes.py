"""Counts the bytes that tensors of one device hold, operation by operation; with fake tensors no memory is needed."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_aten = torch.ops.aten
_BLOCK = 512  # what CUDA's caching allocator rounds up to
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default}


def _run(function, args, kwargs):
    """The operation; its numbers do not matter, and processors without 16-bit products take a hundred times as long."""
    if function not in _PRODUCTS:
        return function(*args, **kwargs)
    narrow = {leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
    wide = tree_map(lambda leaf: leaf.float() if isinstance(leaf, torch.Tensor) else leaf, args)
    return function(*wide, **kwargs).to(*narrow)


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
        result = _run(function, args, kwargs or {})
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
