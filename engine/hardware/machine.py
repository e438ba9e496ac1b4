"""Machine and Gpu: what a computer has, as values. The planner reads nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.hardware.measured import Measured

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. None means unknown, never zero."""

    index: int
    name: str
    memory_total: int | None
    "Bytes."
    memory_free: int | None
    "Bytes that no process holds now."
    card: str | None = None
    "Its name in assets/gpus.toml."
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
    "Bytes a second, by its data sheet."
    tensor_flops: float | None = None
    "Dense fp16 / bf16 operations a second with fp32 accumulation, by its data sheet."
    pcie_generation: int | None = None
    pcie_lanes: int | None = None

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bf16 (Ampere and newer; an unknown card is taken to be new)."""
        return self.compute_capability is None or self.compute_capability >= (8, 0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One computer, real or simulated, as far as this process may use it."""

    gpus: tuple[Gpu, ...] = ()
    cpu_name: str | None = None
    cpu_cores: int
    "Cores that this process may run on."
    ram_total: int
    "Bytes; the container's limit where there is one."
    ram_available: int
    ram_limited_by: str | None = None
    'What limits it below the installed memory: "cgroup v2".'
    swap_total: int | None = None
    disk_free: int
    "Bytes that this user may still write where the run goes."
    disk_total: int
    disk_kind: str | None = None
    "nvme, ssd, hdd or network."
    libraries: Mapping[str, str | None] = field(default_factory=dict)
    "Version of each library that enables something; None where it is not installed."
    simulated: str | None = None
    "Name of the card that was asked for instead of measured."
    measured: Measured | None = None
    "What `engine profile` found here; None where it has not run, and for a simulated machine."
