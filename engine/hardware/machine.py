"""Machine and Gpu, the values that the planner knows a computer by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.hardware.measured import Measured
    from engine.hardware.past_runs import PastRuns

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. None means unknown, never zero."""

    index: int
    name: str
    memory_total: int | None
    "Bytes."
    memory_free: int | None
    "Bytes that are currently free."
    card: str | None = None
    "Its key in assets/gpus.toml."
    uuid: str | None = None
    architecture: str | None = None
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    cuda: str | None = None
    "Highest CUDA version that the driver supports."
    mig: bool | None = None
    processes: int | None = None
    "Processes that hold memory on it."
    memory_bandwidth: float | None = None
    "Bytes per second, by its data sheet."
    tensor_flops: float | None = None
    "Dense fp16 / bf16 operations per second with fp32 accumulation, by its data sheet."
    pcie_generation: int | None = None
    pcie_lanes: int | None = None

    @property
    def has_bf16(self) -> bool:
        """Whether it supports bf16 (Ampere and newer; an unknown GPU counts as new)."""
        return self.compute_capability is None or self.compute_capability >= (8, 0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Computer, real or simulated, as far as this process may use it."""

    gpus: tuple[Gpu, ...] = ()
    cpu_name: str | None = None
    cpu_cores: int
    "Cores that this process may run on."
    ram_total: int
    "Bytes; the container's limit if there is one."
    ram_available: int
    ram_limited_by: str | None = None
    'The limit below the installed memory, such as "cgroup v2".'
    swap_total: int | None = None
    disk_free: int
    "Bytes that this user may still write on the run's disk."
    disk_total: int
    disk_kind: str | None = None
    "nvme, ssd, hdd or network."
    libraries: Mapping[str, str | None] = field(default_factory=dict)
    "Version of each library of LIBRARIES; None if it is not installed."
    simulated: str | None = None
    "Key of the simulated GPU model; None for this machine's own hardware."
    measured: Measured | None = None
    "Results of `engine profile`; None if it has not run, and for a simulated machine."
    past: PastRuns | None = None
    "What past runs took, beside their predictions; None where there were none, and for a simulated machine."
