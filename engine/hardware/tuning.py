"""Sets up allocators and kernels, once, before the first tensor of a run."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_MAPPED_FROM = 8 << 20
"Bytes from which a host allocation is a separate mapping, returned to the system as soon as it is freed."
_TRIMMED_FROM = 64 << 20
"Free bytes at the heap's end from which it is trimmed."
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_heap_whole() -> bool:
    """Keeps large host tensors out of glibc's heap, for the rest of the process; returns whether it could.

    By default glibc raises its threshold for mappings to 32 MiB as soon as one is freed. Smaller activations then leave
    holes in the heap that longer tensors do not fit into. Whole windows of 16K tokens of a Qwen2 256 wide took 3.8 GiB
    for 1.9 GiB of tensors. With a fixed threshold (mallopt(3)) they take 2.1 GiB. A step at 4K tokens, for which
    returned pages must be mapped again, is up to a tenth slower.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library than glibc
    done = (set_option(_M_MMAP_THRESHOLD, _MAPPED_FROM), set_option(_M_TRIM_THRESHOLD, _TRIMMED_FROM))
    return all(done)


def trim_heap() -> None:
    """Returns freed pages of glibc's heap to the system (malloc_trim(3)); does nothing with another C library.

    By itself glibc returns only what lies at the heap's end. Of a model whose 4-bit weights were copied to pinned
    memory, 195 of 320 MiB stayed otherwise.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def tune_memory(device: torch.device) -> bool:
    """Enables expandable segments of GPU memory, TF32 products and tuned kernels; returns whether it did.

    Windows of different lengths need blocks of different sizes. With fixed segments a longer window finds none that is
    large enough and allocates a new one; expandable segments map more pages behind the same addresses. TF32 rounds the
    factors of fp32 products to 10 bits, which does not affect the adapter's fp32 products with bf16 activations. Rotary
    tables are exempt (engine.models.rope_tables).
    """
    if device.type != "cuda":
        return False
    import torch

    # Set at run time, because the environment variable would have to be set before the process allocates.
    apply = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    apply("expandable_segments:True")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return True
