"""Values that `engine profile` measured on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = 1
"Version of the file's format. Machines with files of another version are measured again."


@dataclass(frozen=True, kw_only=True)
class AttentionRate:
    """Operations per second of one kernel at one head dimension, forward and backward."""

    backend: str
    head_dim: int
    forward: float
    backward: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates in operations or bytes per second, sizes in bytes. None means not measured."""

    version: int = VERSION
    time: float
    "Seconds since the epoch."
    torch: str
    gpu_room: int | None = None
    "GPU memory that could be allocated, in pieces."
    gpu_largest: int | None = None
    "GPU memory that could be allocated in one piece."
    gpu_context: int | None = None
    "GPU memory of the process besides its tensors, with kernels loaded."
    gpu_problem: str | None = None
    "Why the GPU's figures are missing or partial, such as busy, gone or too old."
    others_busy: float = 0.0
    "Share of the CPU that other processes used just before, which makes the rates too low."
    matrix: Mapping[str, float] = field(default_factory=dict)
    "Rate of products of matrices WIDE wide, by dtype."
    narrow_matrix: Mapping[str, float] = field(default_factory=dict)
    "Rate of products of matrices NARROW wide, by dtype."
    attention: tuple[AttentionRate, ...] = ()
    launch: float | None = None
    "Seconds to launch one small kernel."
    device_copy: float | None = None
    "Bytes read and written per second in the GPU's memory, added."
    to_device: float | None = None
    to_host: float | None = None
    "To and from the GPU, with pinned memory."
    to_device_pageable: float | None = None
    to_host_pageable: float | None = None
    ram_write: float | None = None
    ram_copy: float | None = None
    "Bytes read and written per second, added."
    disk_write: float | None = None
    disk_read: float | None = None
    "Without the page cache, as far as the system allows."
    corrections: Mapping[str, float] = field(default_factory=dict)
    "Ratio of the seconds that `engine probe` measured to those predicted from the rates above, by `correction_key`."

    @property
    def doubt(self) -> str:
        """Why these figures are too low, with the remedy, for a person; "" if the machine was idle."""
        if self.others_busy < _WORTH_TELLING:
            return ""
        return f"{self.others_busy:.0%} of the CPU was busy: measure again when the machine is idle"


_WORTH_TELLING = 0.15
"""Share of the CPU used by other processes from which the figures' error exceeds their own spread."""

WIDE, NARROW = 4096, 1024
"Widths of the multiplied matrices."


def correction_key(model: str, precision: str, *, streamed: bool) -> str:
    """Returns the key of a correction, for one model in one precision and one kind of step."""
    return f"{model}, {precision}, {'streamed' if streamed else 'whole'}"
