"""Takes inventory of GPUs, CPU, memory, disk and libraries, without importing any of the libraries."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import replace
from pathlib import Path

import psutil

from engine.hardware import measured_files, past_run_files
from engine.hardware.disk import read_disk
from engine.hardware.limits import count_cores, read_memory
from engine.hardware.machine import Gpu, Machine
from engine.hardware.nvml import Nvml

__all__ = ["LIBRARIES", "Gpu", "Machine", "take_inventory"]

LIBRARIES = {
    "torch": "training",
    "transformers": "models",
    "peft": "LoRA adapters",
    "accelerate": "the training loop",
    "safetensors": "reading and writing weights",
    "nvidia-ml-py": "GPU gauges",
    "bitsandbytes": "4-bit weights (nf4) and 8-bit optimisers",
    "triton": "compiled GPU kernels",
    "liger-kernel": "fused GPU kernels for norms, MLP and loss",
    "fla-core": "recurrent layers (Gated DeltaNet) on GPUs",
    "flash-attn": "one more attention backend",
    "flash-attn-4": "faster attention from Hopper on",
    "deepspeed": "ZeRO: states and weights in host memory or over several GPUs",
}
"""Relevant distributions, and the use of each."""


def take_inventory(disk_path: Path, root: Path = Path("/")) -> Machine:
    """Takes inventory of this machine, as far as this process may use it.

    Args:
        disk_path: Path that the run will be written to; need not exist yet.
        root: Mount point of /proc and /sys.
    """
    memory = read_memory(root)
    disk = read_disk(disk_path, root)
    machine = Machine(
        gpus=_read_gpus(),
        cpu_name=_cpu_name(root),
        cpu_cores=count_cores(root),
        ram_total=memory.total,
        ram_available=memory.available,
        ram_limited_by=memory.limited_by,
        swap_total=_swap_total(),
        disk_free=disk.free,
        disk_total=disk.total,
        disk_kind=disk.kind,
        libraries={name: _version(name) for name in LIBRARIES},
    )
    return replace(machine, measured=measured_files.load(machine), past=past_run_files.load(machine))


def _read_gpus() -> tuple[Gpu, ...]:
    nvml = Nvml.open()
    if nvml is None:
        return ()
    try:
        return nvml.gpus()
    finally:
        nvml.close()


def _cpu_name(root: Path) -> str | None:
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or None


def _swap_total() -> int | None:
    try:
        return psutil.swap_memory().total
    except (OSError, RuntimeError):  # psutil needs /proc/vmstat, which some containers hide
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
