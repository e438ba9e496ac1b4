"""Samples live readings for gauges in a thread. The screens read the latest snapshot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from engine.hardware.disk import read_disk
from engine.hardware.limits import read_memory
from engine.hardware.nvml import GpuSample, Nvml

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One reading of all sources. None means unknown, and is shown as n/a."""

    time: float
    "Seconds since the epoch."
    gpus: tuple[GpuSample, ...]
    "Empty if there is no NVIDIA GPU or driver."
    cpu_percent: float | None
    "Mean over all cores since the previous snapshot."
    ram_used: int | None
    ram_total: int | None
    "The container's limit if there is one."
    swap_used: int | None
    swap_total: int | None
    disk_free: int | None
    disk_total: int | None


class Sampler:
    """Takes a Snapshot every `interval` seconds in a daemon thread, from `start` to `stop`.

    A source that fails leaves its own fields None.
    """

    def __init__(self, interval: float = 1.0, disk_path: Path = Path()) -> None:
        self._interval = interval
        self._disk_path = disk_path
        self._latest: Snapshot | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts to sample. A second call does nothing."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops the thread, after a sample in progress."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join(timeout=2 * self._interval + 5)
            self._thread = None

    def latest(self) -> Snapshot | None:
        """Returns the newest snapshot without reading anything; None before the first."""
        return self._latest

    def _run(self) -> None:
        nvml = Nvml.open()
        try:
            _or_none(_cpu_percent)  # the first reading covers no interval
            first = True
            while not self._stopping.wait(0 if first else self._interval):
                self._latest = _sample(nvml, self._disk_path, first=first)
                first = False
        finally:
            if nvml is not None:
                nvml.close()


def _sample(nvml: Nvml | None, disk_path: Path, *, first: bool) -> Snapshot:
    memory = _or_none(read_memory)
    swap = _or_none(psutil.swap_memory)
    disk = _or_none(lambda: read_disk(disk_path))
    return Snapshot(
        time=time.time(),
        gpus=nvml.samples() if nvml else (),
        cpu_percent=None if first else _or_none(_cpu_percent),
        ram_used=memory.total - memory.available if memory else None,
        ram_total=memory.total if memory else None,
        swap_used=swap.used if swap else None,
        swap_total=swap.total if swap else None,
        disk_free=disk.free if disk else None,
        disk_total=disk.total if disk else None,
    )


def _cpu_percent() -> float:
    return psutil.cpu_percent(interval=None)


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (OSError, RuntimeError, psutil.Error):
        return None
