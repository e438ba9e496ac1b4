"""What `engine profile` measured on a machine: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = 1
"Of the file's meaning. Files of another version are measured again."


@dataclass(frozen=True, kw_only=True)
class AttentionRate:
    """Operations a second of one kernel at one head size, forward and backward."""

    backend: str
    head_dim: int
    forward: float
    backward: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates in operations or bytes a second, sizes in bytes. None was not measured."""

    version: int = VERSION
    time: float
    "Seconds since the epoch."
    torch: str
    gpu_room: int | None = None
    "GPU memory that could be had, in pieces."
    gpu_largest: int | None = None
    "In one piece."
    gpu_context: int | None = None
    "What the process took beside its tensors, kernels loaded."
    gpu_problem: str | None = None
    "Why the GPU's figures are missing or partial: busy, gone, too old."
    others_busy: float = 0.0
    "Share of the processor that other work took just before; rates are too low for it."
    matrix: Mapping[str, float] = field(default_factory=dict)
    "By format: a product of wide matrices."
    narrow_matrix: Mapping[str, float] = field(default_factory=dict)
    "By format: one of matrices NARROW wide."
    attention: tuple[AttentionRate, ...] = ()
    launch: float | None = None
    "Seconds to start one small operation."
    device_copy: float | None = None
    "Bytes read and written a second inside the GPU's memory, together."
    to_device: float | None = None
    to_host: float | None = None
    "From and to pinned memory."
    to_device_pageable: float | None = None
    to_host_pageable: float | None = None
    ram_write: float | None = None
    ram_copy: float | None = None
    "Bytes read and written, together."
    disk_write: float | None = None
    disk_read: float | None = None
    "Past the page cache, as far as the system allows."
    corrections: Mapping[str, float] = field(default_factory=dict)
    "By `correction_key`: seconds that `engine probe` found, in units of those predicted from the rates above."

    @property
    def doubt(self) -> str:
        """Why these figures are too low, and the remedy, for a person; "" where the machine was idle."""
        if self.others_busy < _WORTH_TELLING:
            return ""
        return f"{self.others_busy:.0%} of the processor was busy: measure again when the machine is idle"


_WORTH_TELLING = 0.15
"""Share of the processor that other work took, from which on figures are off by more than their own spread."""

WIDE, NARROW = 4096, 1024
"Widths of the matrices that are multiplied."


def correction_key(model: str, precision: str, *, streamed: bool) -> str:
    """What a correction holds for: one model in one format, by one way to compute a step."""
    return f"{model}, {precision}, {'streamed' if streamed else 'whole'}"
