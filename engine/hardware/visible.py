"""CUDA_VISIBLE_DEVICES: which GPUs a process sees, and in which order. No torch."""

from __future__ import annotations

from collections.abc import MutableMapping

_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def visible_names(text: str) -> list[str]:
    """What a value of CUDA_VISIBLE_DEVICES names: indices, UUIDs ("GPU-...") or MIG devices ("MIG-...").

    Like CUDA, stops at the first name that is none ("", "-1"): what follows it is hidden.
    """
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return names


def show_one(environment: MutableMapping[str, str], local_rank: int) -> None:
    """Leaves a rank the GPU of its place among those that its launcher sees; none where they are too few.

    Args:
        environment: The rank's, before CUDA reads it.
        local_rank: The rank's place on its host.
    """
    text = environment.get(_VISIBLE)
    names = [str(index) for index in range(local_rank + 1)] if text is None else visible_names(text)
    environment[_VISIBLE] = names[local_rank] if local_rank < len(names) else ""


def number_by_bus(environment: MutableMapping[str, str]) -> None:
    """Makes CUDA number GPUs by PCI bus, as NVML and nvidia-smi do, unless the user chose another order.

    CUDA's own order begins with the fastest GPU: index 0 would be one GPU in a plan and another in the process.
    """
    environment.setdefault(_ORDER, "PCI_BUS_ID")
