"""Reads NVML with each call guarded by itself. A value that the driver cannot give is None.

Old drivers lack functions, laptops lack power readings, MIG hides utilisation, and a GPU can fall off its bus. A failed
call does not affect the others. Without a driver, or without nvidia-ml-py, there are no GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from engine.hardware.cards import match_card
from engine.hardware.environment import visible_names
from engine.hardware.machine import Gpu


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """Current readings of one GPU. None means unknown."""

    index: int
    name: str | None
    memory_used: int | None
    memory_total: int | None
    utilisation: float | None
    "Percent of the last interval in which a kernel ran."
    power: float | None
    "Watts."
    power_limit: float | None
    temperature: float | None
    "Degrees Celsius."
    clock: float | None
    "SM clock in MHz."
    clock_max: float | None
    throttled: tuple[str, ...] | None
    "Reasons for clock throttling, of power, heat and hardware."


_THROTTLES = {
    "heat": (0x20, 0x40),  # software and hardware thermal slowdown
    "power": (0x04, 0x80),  # software power cap, hardware power brake
    "hardware": (0x08,),  # hardware slowdown
}
"Bits of nvmlDeviceGetCurrentClocksThrottleReasons."


class Nvml:
    """Open NVML library. `close` it when done."""

    def __init__(self, library: ModuleType) -> None:
        self._library = library
        self._handles = self._find_handles()

    @staticmethod
    def open() -> Nvml | None:
        """Opens the library; None if there is no NVIDIA driver or no nvidia-ml-py."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError, OSError):
            return None
        return Nvml(pynvml)

    def close(self) -> None:
        """Shuts the library down. Never raises."""
        self._call("nvmlShutdown")

    def gpus(self) -> tuple[Gpu, ...]:
        """Lists every GPU that this process may use, in NVML's order (that of the PCI bus)."""
        driver = _text(self._call("nvmlSystemGetDriverVersion"))
        cuda = self._cuda_version()
        return tuple(self._gpu(index, handle, driver, cuda) for index, handle in self._handles)

    def samples(self) -> tuple[GpuSample, ...]:
        """Reads every GPU."""
        return tuple(self._sample(index, handle) for index, handle in self._handles)

    def _gpu(self, index: int, handle: Any, driver: str | None, cuda: str | None) -> Gpu:
        call = self._call
        name = _text(call("nvmlDeviceGetName", handle)) or "unknown GPU"
        memory = call("nvmlDeviceGetMemoryInfo", handle)
        total, free = (memory.total, memory.free) if memory else (None, None)
        card = match_card(name, total)
        capability = call("nvmlDeviceGetCudaComputeCapability", handle)
        mig = call("nvmlDeviceGetMigMode", handle)
        lists = [
            call(function, handle)
            for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        ]
        processes = {process.pid for found in lists if found is not None for process in found}
        return Gpu(
            index=index,
            name=name,
            card=card.key if card else None,
            uuid=_text(call("nvmlDeviceGetUUID", handle)),
            memory_total=total if total is not None else (card.memory if card else None),
            memory_free=free,
            architecture=card.architecture if card else None,
            compute_capability=tuple(capability) if capability else (card.compute_capability if card else None),
            driver=driver,
            cuda=cuda,
            mig=bool(mig[0]) if mig else None,
            processes=None if lists == [None, None] else len(processes),
            memory_bandwidth=card.bandwidth if card else None,
            tensor_flops=card.tensor_flops if card else None,
            pcie_generation=call("nvmlDeviceGetMaxPcieLinkGeneration", handle)
            or (card.pcie_generation if card else None),
            pcie_lanes=call("nvmlDeviceGetMaxPcieLinkWidth", handle) or (card.pcie_lanes if card else None),
        )

    def _sample(self, index: int, handle: Any) -> GpuSample:
        call = self._call
        memory = call("nvmlDeviceGetMemoryInfo", handle)
        rates = call("nvmlDeviceGetUtilizationRates", handle)
        reasons = call("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return GpuSample(
            index=index,
            name=_text(call("nvmlDeviceGetName", handle)),
            memory_used=memory.used if memory else None,
            memory_total=memory.total if memory else None,
            utilisation=float(rates.gpu) if rates else None,
            power=_scaled(call("nvmlDeviceGetPowerUsage", handle), 1e-3),
            power_limit=_scaled(call("nvmlDeviceGetEnforcedPowerLimit", handle), 1e-3),
            temperature=_scaled(call("nvmlDeviceGetTemperature", handle, 0), 1.0),
            clock=_scaled(call("nvmlDeviceGetClockInfo", handle, 1), 1.0),
            clock_max=_scaled(call("nvmlDeviceGetMaxClockInfo", handle, 1), 1.0),
            throttled=None if reasons is None else _throttles(reasons),
        )

    def _find_handles(self) -> tuple[tuple[int, Any], ...]:
        count = self._call("nvmlDeviceGetCount") or 0
        found = [(index, self._call("nvmlDeviceGetHandleByIndex", index)) for index in range(count)]
        present = [(index, handle) for index, handle in found if handle is not None]
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
        if wanted is None:
            return tuple(present)
        return self._visible(present, wanted)

    def _visible(self, present: list[tuple[int, Any]], wanted: str) -> tuple[tuple[int, Any], ...]:
        """Selects the devices that CUDA_VISIBLE_DEVICES names, in its order; a MIG device has its GPU's index."""
        by_index = dict(present)
        named = [(self._uuid(handle), index, handle) for index, handle in present]
        chosen = []
        for name in visible_names(wanted):
            if name.isdecimal():
                found = [(int(name), by_index[int(name)])] if int(name) in by_index else []
            else:
                if name.startswith("MIG-"):
                    named += [one for pair in present for one in self._mig_devices(*pair)]
                found = [(index, handle) for uuid, index, handle in named if uuid.startswith(name)]
            if not found:
                break  # as CUDA does
            chosen.append(found[0])
        return tuple(chosen)

    def _mig_devices(self, index: int, parent: Any) -> Iterator[tuple[str, int, Any]]:
        for place in range(self._call("nvmlDeviceGetMaxMigDeviceCount", parent) or 0):
            handle = self._call("nvmlDeviceGetMigDeviceHandleByIndex", parent, place)
            if handle is not None:
                yield self._uuid(handle), index, handle

    def _uuid(self, handle: Any) -> str:
        return _text(self._call("nvmlDeviceGetUUID", handle)) or ""

    def _cuda_version(self) -> str | None:
        for function in ("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"):
            number = self._call(function)
            if number:
                return f"{number // 1000}.{number % 1000 // 10}"
        return None

    def _call(self, name: str, *arguments: Any) -> Any:
        """Calls one NVML function; returns None if the driver, the GPU or the binding does not support it."""
        function: Callable[..., Any] | None = getattr(self._library, name, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except (self._library.NVMLError, OSError, ValueError):
            return None


def _throttles(bits: int) -> tuple[str, ...]:
    return tuple(word for word, masks in _THROTTLES.items() if any(bits & mask for mask in masks))


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
