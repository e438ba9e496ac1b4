"""Classifies exceptions across libraries."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch

from engine.errors import EliteError, one_line
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE
from engine.errors.training import GRADIENT_NOT_FINITE, LOSS_NOT_FINITE, MEMORY_FULL, OUT_OF_MEMORY
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
    """Raised before an allocation that could trigger the OOM killer. The message gives the figures."""


def memory_place(error: BaseException) -> Place | None:
    """Names the full memory; None for any other failure."""
    if isinstance(error, HostMemoryLowError):
        return "host"
    place = full_place(error)
    if isinstance(error, EliteError) and error.kind is OUT_OF_MEMORY:
        place = error.values["place"]
    return place if place in ("GPU", "host", "disk") else None  # type: ignore[return-value]


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk was full when a checkpoint was written."""
    return isinstance(error, EliteError) and error.kind is OUTPUT_FULL


def is_disk_failing(error: BaseException) -> bool:
    """Whether the disk failed when a checkpoint was written, for another reason than that it was full."""
    return isinstance(error, EliteError) and error.kind is OUTPUT_UNWRITABLE


def is_driver_failure(error: BaseException) -> bool:
    """Whether the GPU's context is lost, so that nothing on the GPU can be read any more."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return any(words in str(error).lower() for words in _DRIVER_WORDS)


def is_divergence(error: BaseException) -> bool:
    """Whether the loss or its gradient is not finite."""
    return isinstance(error, EliteError) and error.kind in (LOSS_NOT_FINITE, GRADIENT_NOT_FINITE)


def release_memory() -> None:
    """Frees the tensors of a failed attempt, which the frames of its exception referred to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def memory_errors(phase: str, largest: str, remedy: str) -> Iterator[None]:
    """Turns an OOM, which torch reports in several ways, into one typed error.

    Args:
        phase: Phase to name in the error.
        largest: Largest allocation of this phase.
        remedy: Remedy to name in the error.

    Raises:
        EliteError: OUT_OF_MEMORY.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        place = full_place(error)
        if place is None:
            raise
        raise OUT_OF_MEMORY(place=place, phase=phase, largest=largest, remedy=remedy) from error


@contextlib.contextmanager
def memory_errors_by_phase(session: TrainingSession) -> Iterator[None]:
    """Turns an OOM that no phase of a run has handled into an error that names the phase.

    Raises:
        EliteError: MEMORY_FULL.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        place = full_place(error)
        if place is None:
            raise
        problem = one_line(error) or type(error).__name__
        raise MEMORY_FULL(place=place, phase=session.phase, problem=problem, run=session.run.id) from error
