"""What kind of failure an exception is, whatever library raised it."""

from __future__ import annotations

import gc
from typing import Literal

import torch

from engine import errors
from engine.errors import EliteError
from engine.streaming.out_of_memory import full_place

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
