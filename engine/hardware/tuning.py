"""Settings of a GPU's allocator and kernels that cost nothing: made once, before the first tensor of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tune_memory(device: torch.device) -> bool:
    """Lets segments of GPU memory grow in place, and allows TF32 products and tuned kernels; tells whether it did.

    Windows of different lengths ask for blocks of different sizes. With fixed segments a longer one finds none that
    is large enough and takes a new one; expandable segments map more pages behind the same addresses. TF32 rounds
    the factors of fp32 products to 10 bits, which the adapter's fp32 products around bf16 activations do not notice.
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
