"""Machines for the tests of the plan."""

from __future__ import annotations

from engine.hardware.cards import find_card, simulate
from engine.hardware.machine import GIB, Machine


def with_card(name: str, ram: float = 64, disk: float = 500) -> Machine:
    """A simulated machine; sizes in GiB."""
    return simulate(find_card(name), ram_bytes=round(ram * GIB), disk_bytes=round(disk * GIB))


def without_card(ram: float = 16, disk: float = 100, cores: int = 4) -> Machine:
    """A machine with no GPU; sizes in GiB."""
    total, free = round(ram * GIB), round(disk * GIB)
    return Machine(cpu_cores=cores, ram_total=total, ram_available=total, disk_free=free, disk_total=free)
