"""Reads the memory usage of this process."""

from __future__ import annotations

import resource

import psutil
import torch

_PROCESS = psutil.Process()


def memory_usage(device: torch.device) -> dict[str, int | None]:
    """Returns the memory fields of StepCompleted, in bytes; those of the GPU are None if there is none."""
    gpu = device.type == "cuda"
    return {
        "gpu_allocated": torch.cuda.memory_allocated(device) if gpu else None,
        "gpu_reserved": torch.cuda.memory_reserved(device) if gpu else None,
        "gpu_peak": gpu_peak(device),
        "host_used": int(_PROCESS.memory_info().rss),
    }


def gpu_peak(device: torch.device) -> int | None:
    """Returns the peak bytes of tensors on the GPU so far; None without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def host_peak() -> int:
    """Returns the peak resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
