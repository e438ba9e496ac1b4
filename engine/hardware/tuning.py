"""Settings of allocators and kernels: made once, before the first tensor of a run."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_MAPPED_FROM = 8 << 20
"Bytes of host memory from which on an allocation is a mapping of its own, given back as soon as it is freed."
_TRIMMED_FROM = 64 << 20
"Bytes that are free at the heap's end before it is made smaller."
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_heap_whole() -> bool:
    """Keeps large host tensors out of glibc's heap, for the rest of the process; tells whether it could.

    By itself glibc raises its limit for mappings to 32 MiB as soon as one is freed. Activations below that then leave
    holes in the heap that no longer tensor fits into: whole windows of 16K tokens of a Qwen2 256 wide took 3.8 GiB
    where their tensors are 1.9 GiB. With a fixed limit (mallopt(3)) they take 2.1 GiB; a step at 4K tokens, where the
    pages of what was given back have to come anew, is up to a tenth slower.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library than glibc
    done = (set_option(_M_MMAP_THRESHOLD, _MAPPED_FROM), set_option(_M_TRIM_THRESHOLD, _TRIMMED_FROM))
    return all(done)


def tune_memory(device: torch.device) -> bool:
    """Lets segments of GPU memory grow in place, and allows TF32 products and tuned kernels; tells whether it did.

    Windows of different lengths ask for blocks of different sizes. With fixed segments a longer one finds none that
    is large enough and takes a new one; expandable segments map more pages behind the same addresses. TF32 rounds
    the factors of fp32 products to 10 bits, which the adapter's fp32 products around bf16 activations do not notice.
    Rotary tables are kept out of it (engine.models.rope_tables).
    """
    if device.type != "cuda":
        return False
    import torch

    # At run time: the environment variable would have to be there before the process allocates, whoever starts it.
    apply = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    apply("expandable_segments:True")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return True
