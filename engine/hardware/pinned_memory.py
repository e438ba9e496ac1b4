"""Allocates pinned host memory of exactly the requested size.

torch's pinned allocator rounds up to powers of two, with which hidden states of 1.6 GB would take 2.1 GB, times the
number of layers. This module registers anonymous memory on huge pages with CUDA instead, which also means hundreds of
times fewer pages to lock.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


class _Registered(mmap.mmap):
    """Anonymous memory registered with CUDA for asynchronous copies; unregistered before it is unmapped."""

    address: int = 0

    def __del__(self) -> None:
        if self.address:
            torch.cuda.cudart().cudaHostUnregister(self.address)


def pinned_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocates a pinned host tensor of the given shape and dtype, with undefined contents.

    The memory is freed with the last tensor on it. Without a CUDA device it is not pinned, as no device copies from it.

    Raises:
        MemoryError: the system has no more memory, or cannot lock more.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    try:
        memory = _Registered(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size:,} bytes of host memory: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=dtype).view(tuple(shape))
    # The system maps and clears a page when it is first written. Writing one byte of each page here does so with all
    # threads; cudaHostRegister would use one.
    torch.frombuffer(memory, dtype=torch.uint8)[:: mmap.PAGESIZE].zero_()
    if not torch.cuda.is_available():
        return tensor
    status = torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), size, 0)
    if int(status) != 0:
        raise MemoryError(f"{size:,} bytes of host memory could not be pinned (CUDA status {int(status)})")
    memory.address = tensor.data_ptr()
    return tensor
