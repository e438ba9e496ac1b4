"""What this process uses of the machine's memory."""

from __future__ import annotations

import resource

import psutil
import torch

_PROCESS = psutil.Process()


def memory_usage(device: torch.device) -> dict[str, int | None]:
    """The memory fields of StepCompleted, in bytes; None for a GPU that is not there."""
    gpu = device.type == "cuda"
    return {
        "gpu_allocated": torch.cuda.memory_allocated(device) if gpu else None,
        "gpu_reserved": torch.cuda.memory_reserved(device) if gpu else None,
        "gpu_peak": gpu_peak(device),
        "host_used": int(_PROCESS.memory_info().rss),
    }


def gpu_peak(device: torch.device) -> int | None:
    """Most bytes that tensors took on the GPU so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def host_peak() -> int:
    """Most bytes of RAM that this process was resident with so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
