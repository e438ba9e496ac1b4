"""Lines of the memory ledger: their type, their names, and those that do not depend on the step layout.

Measured constants, as opposed to derived ones, are named here and beside the other lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from engine.plan.activations import Held
from engine.plan.stream_plan import Home
from engine.plan.workload import Workload

Place = Literal["gpu", "host", "disk"]

MIB = 1024**2
CUDA_CONTEXT = 850 * MIB
"CUDA context and loaded kernels, outside the allocator: 841 to 855 MiB on an H100. Smaller GPUs should take less."
HOST_PROCESS = 2048 * MIB
"Python, torch, transformers and the CUDA libraries: 1,875 MiB measured after a step; and the data loader."
HOST_PROCESS_CPU = 1024 * MIB
"Python, torch and transformers without CUDA. Estimate."
LORA_BYTES = 16
"Bytes per adapter parameter: fp32 value, gradient and two Adam states."
CHECKPOINTS_KEPT = 3
"Two kept, one being written."

CONTEXT = "CUDA context and libraries"
PROCESS = "the training process itself"
NOT_ALLOCATED = (CONTEXT, PROCESS)
"""Names of lines that the allocator does not serve."""


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One ledger line. `words` renders its formula on demand, since a planner compares thousands of lines.

    A Struct is made ten times as fast as a dataclass. The garbage collector need not visit it, since no formula refers
    to its line.
    """

    name: str
    where: Place
    bytes: int
    words: Callable[[], str]


def fixed_parts(work: Workload, device: Place) -> Iterator[Line]:
    """Lists the lines that do not depend on the step layout, apart from the base weights."""
    if work.on_gpu:
        context = work.gpu_context or CUDA_CONTEXT
        place = "here" if work.gpu_context else "on an H100"
        yield Line(
            name=CONTEXT,
            where="gpu",
            bytes=context,
            words=lambda: f"{context // MIB:,} MiB, measured {place}",
        )
        yield Line(
            name="matrix library's workspaces",
            where="gpu",
            bytes=work.workspaces,
            words=lambda: f"2 threads × {work.workspaces // 2:,} B",
        )
    process = HOST_PROCESS if work.on_gpu else HOST_PROCESS_CPU
    yield Line(
        name=PROCESS,
        where="host",
        bytes=process,
        words=lambda: f"{process // MIB:,} MiB, {'measured' if work.on_gpu else 'estimated'}",
    )
    tokens = 4 * work.repository_tokens
    yield Line(
        name="the token store",
        where="disk",
        bytes=tokens,
        words=lambda: f"{work.repository_tokens:,} tokens × 4 B, memory-mapped",
    )
    if work.master_home is not None:
        return
    yield Line(
        name="checkpoints of the adapter",
        where="disk",
        bytes=CHECKPOINTS_KEPT * 12 * work.lora_parameters,
        words=lambda: f"{CHECKPOINTS_KEPT} × {work.lora_parameters:,} parameters × 12 B (value and Adam states)",
    )
    yield Line(
        name="LoRA weights, gradients and Adam states",
        where=device,
        bytes=LORA_BYTES * work.lora_parameters,
        words=lambda: f"{work.lora_parameters:,} parameters × {LORA_BYTES} B (4 + 4 + 8)",
    )


def place_of(work: Workload, home: Home) -> Place:
    """Returns where a home is: without a GPU, what is on the compute device is in host memory."""
    return home if work.on_gpu or home == "disk" else "host"


def in_words(held: Held) -> str:
    """Lists names with their bytes, as text."""
    return " + ".join(f"{name} {size:,}" for name, size in held if size)
