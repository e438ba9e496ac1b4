"""What training uses of the machine's memory, what it would use, and the error when there is not enough."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import torch

from engine import errors
from engine.streaming.out_of_memory import full_place

if TYPE_CHECKING:
    from engine.models.catalogue import ModelSpec
    from engine.runs.context import TrainingSession

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


def whole_window_bytes(spec: ModelSpec, context: int, bytes_per_number: int) -> int:
    """Activations kept by ordinary backpropagation without recomputing, over one window.

    Per token and layer, what autograd saves: input, norm, residual and attention output (6 of the hidden size),
    queries, keys and values before and after the rotation, and 4 of the feed-forward size (gate, up, their
    product, the activation).
    """
    attention = 2 * spec.head_dim * (spec.heads + 2 * spec.kv_heads)
    per_token = 6 * spec.hidden_size + attention + 4 * spec.mlp_width
    return context * spec.layers * per_token * bytes_per_number


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


@contextlib.contextmanager
def memory_errors_by_phase(session: TrainingSession) -> Iterator[None]:
    """The same for a whole run: what no phase of it has foreseen is named by the phase alone.

    Raises:
        EliteError: MEMORY_FULL.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        place = full_place(error)
        if place is None:
            raise
        problem = errors.one_line(error) or type(error).__name__
        raise errors.MEMORY_FULL(place=place, phase=session.phase, problem=problem, run=session.run.id) from error
