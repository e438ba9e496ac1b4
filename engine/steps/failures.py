"""What kind of failure an exception is, whatever library raised it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch

from engine import errors
from engine.errors import EliteError
from engine.streaming.out_of_memory import full_place

if TYPE_CHECKING:
    from engine.runs.context import TrainingSession

Place = Literal["GPU", "host", "disk"]

_DRIVER_WORDS = (
    "cuda error",
    "cudnn error",
    "cudnn_status",
    "cublas_status",
    "nvml error",
    "device-side assert",
    "nccl error",
)


class HostMemoryLowError(Exception):
    """Another buffer of this size, and the kernel would end a process. The message gives the figures."""


def memory_place(error: BaseException) -> Place | None:
    """Which memory was full; None for any other failure."""
    if isinstance(error, HostMemoryLowError):
        return "host"
    place = full_place(error)
    if isinstance(error, EliteError) and error.kind is errors.OUT_OF_MEMORY:
        place = error.values["place"]
    return place if place in ("GPU", "host", "disk") else None  # type: ignore[return-value]


def is_disk_full(error: BaseException) -> bool:
    """Whether a checkpoint found no room."""
    return isinstance(error, EliteError) and error.kind is errors.OUTPUT_FULL


def is_driver_failure(error: BaseException) -> bool:
    """Whether the GPU's context is gone: nothing on the card can be read any more."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return any(words in str(error).lower() for words in _DRIVER_WORDS)


def is_divergence(error: BaseException) -> bool:
    """Whether the loss or its gradient stopped being a number."""
    return isinstance(error, EliteError) and error.kind in (errors.LOSS_NOT_FINITE, errors.GRADIENT_NOT_FINITE)


def release_memory() -> None:
    """Gives back what a failed attempt held: its tensors hang in the frames of the exception that has gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
