# ruff: noqa: N802
"""Stands in for nvidia-ml-py in child processes: two GPUs with unequal free memory, whatever CUDA_VISIBLE_DEVICES says.

As the real library does: every process sees every GPU of the machine, by index in the order of the PCI bus and by UUID.
"""

from __future__ import annotations

from types import SimpleNamespace

GIB = 1024**3
NVML_TEMPERATURE_GPU = 0
UUIDS = ("GPU-11111111-0000-0000-0000-000000000000", "GPU-22222222-0000-0000-0000-000000000000")
FREE = (23 * GIB, 9 * GIB)
TOTAL = 24 * GIB


class NVMLError(Exception):
    """As in the real library."""


def nvmlInit():
    """See NVML."""


def nvmlShutdown():
    """See NVML."""


def nvmlSystemGetDriverVersion():
    """See NVML."""
    return "580.159.03"


def nvmlSystemGetCudaDriverVersion_v2():
    """See NVML."""
    return 13000


def nvmlDeviceGetCount():
    """See NVML."""
    return len(UUIDS)


def nvmlDeviceGetHandleByIndex(index):
    """See NVML."""
    if not 0 <= index < len(UUIDS):
        raise NVMLError("invalid argument")
    return index


def nvmlDeviceGetHandleByUUID(uuid):
    """See NVML."""
    if uuid not in UUIDS:
        raise NVMLError("not found")
    return UUIDS.index(uuid)


def nvmlDeviceGetUUID(handle):
    """See NVML."""
    return UUIDS[handle]


def nvmlDeviceGetName(handle):
    """See NVML."""
    del handle
    return "NVIDIA GeForce RTX 3090"


def nvmlDeviceGetMemoryInfo(handle):
    """See NVML."""
    return SimpleNamespace(total=TOTAL, free=FREE[handle], used=TOTAL - FREE[handle])


def nvmlDeviceGetCudaComputeCapability(handle):
    """See NVML."""
    del handle
    return (8, 6)


def nvmlDeviceGetComputeRunningProcesses(handle):
    """See NVML."""
    del handle
    return []


def nvmlDeviceGetCurrentClocksThrottleReasons(handle):
    """See NVML: the second GPU is hot."""
    return 0x20 if handle == 1 else 0
