"""Measurements of proofs: peak bytes of tensors, differences between tensors, and call counts."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the memory of every tensor that an operation returns, until it is freed.

    Args:
        device_type: Type of the devices whose tensors count.
    """

    def __init__(self, device_type: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device_type
        self.live = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device_type:
                storage = leaf.untyped_storage()
                if storage._cdata not in self._seen and not _is_among(storage._cdata, (args, kwargs)):
                    self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._seen[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._seen.pop(key, 0)


def _is_among(storage: int, arguments: Any) -> bool:
    """Whether a storage belongs to an operation's arguments: a view, or an in-place change, of an existing tensor."""
    return any(isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata == storage for leaf in tree_leaves(arguments))


def peak_bytes(device: torch.device, function: Callable[[], object]) -> int:
    """Returns the peak bytes of tensors created within a call, beyond those that existed before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = int(torch.cuda.memory_allocated(device))
        function()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    counted = LiveBytes()
    with counted:
        function()
    return counted.peak


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Returns the largest ‖found - expected‖ / ‖expected‖ over all entries; infinite if the keys differ.

    Args:
        found: Tensors by name, of any shape.
        expected: Tensors of the same shapes.

    Returns:
        A 2-norm ratio, computed in fp64 on the CPU.
    """
    if found.keys() != expected.keys():
        return float("inf")

    def error(name: str) -> float:
        want = expected[name].detach().double().cpu()
        return float((found[name].detach().double().cpu() - want).norm() / want.norm().clamp_min(1e-30))

    return max((error(name) for name in expected), default=0.0)


def mib(count: float) -> str:
    """Formats bytes in MiB with two decimals."""
    return f"{count / 2**20:.2f} MiB"


@contextmanager
def counted_calls(module: ModuleType, name: str) -> Iterator[list[int]]:
    """Counts the calls of a module's function inside the block, in a list with one number."""
    calls = [0]
    function = getattr(module, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return function(*args, **kwargs)

    setattr(module, name, counting)
    try:
        yield calls
    finally:
        setattr(module, name, function)
