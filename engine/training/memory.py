"""What training uses of the machine's memory, and the error when there is not enough."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import psutil
import torch

from engine import errors
from engine.streaming.out_of_memory import full_place

_PROCESS = psutil.Process()


def memory_figures(device: torch.device) -> dict[str, int | None]:
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


@contextlib.contextmanager
def memory_errors(phase: str, largest: str, remedy: str) -> Iterator[None]:
    """Turns running out of memory, which torch reports in several ways, into one typed error.

    Args:
        phase: Named in the error.
        largest: What takes most of the memory in this phase.
        remedy: What to do about it.

    Raises:
        EliteError: OUT_OF_MEMORY.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        place = full_place(error)
        if place is None:
            raise
        raise errors.OUT_OF_MEMORY(place=place, phase=phase, largest=largest, remedy=remedy) from error
