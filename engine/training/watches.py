"""Watches for low host memory and for a GPU that throttles because of heat.

A watch is called often, also from within a step, and limits its own rate of reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.hardware.limits import read_memory
from engine.hardware.nvml import GpuSample, Nvml
from engine.protocol.events import Event, WarningRaised
from engine.quantities import format_bytes
from engine.steps.failures import HostMemoryLowError

Clock = Callable[[], float]

_MEMORY_SECONDS = 1.0
_HEAT_SECONDS = 30.0
_HEAT_AGAIN_SECONDS = 1800.0
_STALLED = 20.0
_STALL_MATTERS_BELOW = 3.0
_MEMORY_AGAIN_SECONDS = 60.0
"""Seconds after a low reading until the next one, so that smaller buffers take effect first."""


class HostMemoryWatch:
    """Raises HostMemoryLowError before the OOM killer would end a process, if the step can use smaller buffers.

    Memory is low if less than `reserve` of the RAM that this process may use is available. Up to three times that is
    low too, while all tasks of the machine wait for memory a fifth of the time (PSI, "full avg10").

    Args:
        reserve: Share of RAM; 0 never raises.
        emit: Receives a warning if the step cannot shrink.
        can_shrink: Tells whether the step has a layout that takes less host memory.
        root: Mount point of /proc and /sys.
        clock: Returns seconds.
    """

    def __init__(
        self,
        reserve: float,
        *,
        emit: Callable[[Event], None],
        can_shrink: Callable[[], bool],
        root: Path = Path("/"),
        clock: Clock = time.monotonic,
    ) -> None:
        self._reserve, self._emit, self._can_shrink = reserve, emit, can_shrink
        self._root, self._clock = root, clock
        self._next = -float("inf")
        self._warned = False

    def __call__(self) -> None:
        """Reads memory at most once a second.

        Raises:
            HostMemoryLowError: memory is low.
        """
        now = self._clock()
        if not self._reserve or now < self._next:
            return
        self._next = now + _MEMORY_SECONDS
        text = self._shortage()
        if not text:
            return
        self._next = now + _MEMORY_AGAIN_SECONDS
        if self._can_shrink():
            raise HostMemoryLowError(text)
        if not self._warned:
            self._warned = True
            hint = "close other programs: the kernel ends a process when nothing is left; checkpoints are safe"
            self._emit(WarningRaised(code="host-memory-low", text=text, hint=hint))

    def _shortage(self) -> str:
        memory = read_memory(self._root)
        reserve = self._reserve * memory.total
        text = f"{format_bytes(memory.available)} of {format_bytes(memory.total)} RAM are left"
        if memory.available < reserve:
            return text
        if memory.available < _STALL_MATTERS_BELOW * reserve and (stalled := read_stall(self._root)) > _STALLED:
            return f"{text}, and {stalled:.0f}% of the time is spent waiting for memory"
        return ""


def read_stall(root: Path = Path("/")) -> float:
    """Reads the percentage of the last ten seconds in which all tasks waited for memory; 0 if the kernel has no PSI."""
    try:
        lines = (root / "proc/pressure/memory").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0.0
    for line in lines:
        if line.startswith("full "):
            fields = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
            try:
                return float(fields.get("avg10", "0"))
            except ValueError:
                return 0.0
    return 0.0


class HeatWatch:
    """Warns when a GPU lowers its clock because it is hot.

    Args:
        emit: Receives the warning.
        sample: Reads the GPUs.
        clock: Returns seconds.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        *,
        sample: Callable[[], Sequence[GpuSample]] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._emit, self._clock = emit, clock
        self._sample = sample or _nvml_samples()
        self._looked = -_HEAT_SECONDS
        self._told = -_HEAT_AGAIN_SECONDS

    def __call__(self) -> None:
        """Reads the GPUs every half minute, and warns every half hour at most."""
        now = self._clock()
        if now - self._looked < _HEAT_SECONDS:
            return
        self._looked = now
        for gpu in self._sample():
            if "heat" in (gpu.throttled or ()) and now - self._told >= _HEAT_AGAIN_SECONDS:
                self._told = now
                temperature = "" if gpu.temperature is None else f" at {gpu.temperature:.0f} °C"
                clock = "" if not (gpu.clock and gpu.clock_max) else f" to {gpu.clock / gpu.clock_max:.0%} of its clock"
                self._emit(
                    WarningRaised(
                        code="gpu-hot",
                        text=f"GPU {gpu.index}{temperature} slows down{clock}",
                        hint="steps take longer until it cools: check fans, dust and the room",
                    )
                )


def _nvml_samples() -> Callable[[], Sequence[GpuSample]]:
    nvml = Nvml.open()
    return nvml.samples if nvml is not None else tuple
