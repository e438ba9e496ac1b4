"""Sets CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, which select and order a process's GPUs. Imports no torch."""

from __future__ import annotations

from collections.abc import MutableMapping

_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def visible_names(text: str) -> list[str]:
    """Splits CUDA_VISIBLE_DEVICES into indices, UUIDs ("GPU-...") and MIG devices ("MIG-...").

    Like CUDA, it stops at the first invalid name ("", "-1"), which hides all that follow.
    """
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return names


def show_one(environment: MutableMapping[str, str], local_rank: int) -> None:
    """Restricts a rank to the GPU of its place among those that its launcher sees; to none if they are too few.

    Args:
        environment: The rank's environment, before CUDA reads it.
        local_rank: The rank's place on its host.
    """
    text = environment.get(_VISIBLE)
    names = [str(index) for index in range(local_rank + 1)] if text is None else visible_names(text)
    environment[_VISIBLE] = names[local_rank] if local_rank < len(names) else ""


def number_by_bus(environment: MutableMapping[str, str]) -> None:
    """Makes CUDA number GPUs by PCI bus, as NVML and nvidia-smi do, unless the user chose another order.

    CUDA's own order begins with the fastest GPU, with which index 0 could differ between a plan and the process.
    """
    environment.setdefault(_ORDER, "PCI_BUS_ID")
