"""Sets a process's environment before torch reads it: its GPUs and their order, and how long OpenMP's threads spin."""

from __future__ import annotations

from collections.abc import MutableMapping

_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_ROUNDS = 3000


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


def limit_omp_spin(environment: MutableMapping[str, str]) -> None:
    """Makes OpenMP threads with this environment spin briefly before they sleep, unless it has settings of its own.

    Threads that spin without limit (ACTIVE) make torch seven times slower when other processes use the same cores.
    Threads that sleep immediately must be woken for every operation, at 0.1 ms each. A step of the demo model at
    1,024 tokens on 4 cores takes 0.43 s on an idle machine and 2.9 s beside 4 computing processes if threads spin,
    0.63 s and 1.1 s if they sleep, and 0.50 s and 1.3 s with 3,000 rounds of spinning (`python benchmarks/threads.py`).
    """
    if _POLICY in environment or _SPINS in environment:
        return
    environment[_POLICY] = "PASSIVE"  # for runtimes other than GNU's
    environment[_SPINS] = str(_ROUNDS)
