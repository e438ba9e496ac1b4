"""Chooses the machine to plan for, this one or one with GPUs from the catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.errors.planning import HARDWARE_UNKNOWN, NO_GPU
from engine.hardware.cards import SYSTEM_RAM, find_card, simulate
from engine.hardware.machine import GIB, Machine

SIMULATED_RAM = 64 * GIB
SIMULATED_DISK = 500 * GIB
"RAM and free disk of a simulated machine by default, in bytes."


def target_machine(
    hardware: str = "auto",
    *,
    vram: int | None = None,
    ram: int | None = None,
    disk: int | None = None,
    disk_path: Path = Path(),
) -> Machine:
    """Returns the machine that a plan is for.

    Args:
        hardware: "auto" for this machine; else a GPU of the catalogue, in a machine with SIMULATED_RAM and _DISK;
            several as "rtx-3090*2" or separated by commas.
        vram: Bytes of GPU memory in place of the GPU's own.
        ram: Bytes of RAM in place of the machine's own.
        disk: Bytes of free disk in place of the machine's own.
        disk_path: Path that the run would be written to.

    Raises:
        EliteError: HARDWARE_UNKNOWN; NO_GPU, if `vram` is given and there is no GPU.
    """
    if hardware.strip().lower() != "auto":
        cards = [find_card(name) for name in _card_names(hardware)]
        if vram is not None:
            cards = [replace(card, memory=vram) for card in cards]
        ram_bytes = SIMULATED_RAM if ram is None else ram
        disk_bytes = SIMULATED_DISK if disk is None else disk
        machines = [simulate(card, ram_bytes=ram_bytes, disk_bytes=disk_bytes) for card in cards]
        gpus = tuple(replace(one.gpus[0], index=index) for index, one in enumerate(machines))
        return replace(machines[0], gpus=gpus)
    from engine.hardware.inventory import take_inventory  # loads psutil, of no use for a simulated machine

    machine = take_inventory(disk_path)
    if vram is not None:
        if not machine.gpus:
            raise NO_GPU()
        first = replace(machine.gpus[0], memory_total=vram, memory_free=vram)
        machine = replace(machine, gpus=(first, *machine.gpus[1:]))
    if ram is not None:
        machine = replace(machine, ram_total=ram, ram_available=max(0, ram - SYSTEM_RAM), ram_limited_by=None)
    if disk is not None:
        machine = replace(machine, disk_free=disk, disk_total=max(disk, machine.disk_total))
    return machine


_MOST_CARDS = 64


def _card_names(hardware: str) -> list[str]:
    """Expands "a*2, b" to the names a, a, b.

    Raises:
        EliteError: HARDWARE_UNKNOWN, if a count is not a number from 1 to 64.
    """
    names: list[str] = []
    for part in hardware.split(","):
        name, star, count = part.partition("*")
        if star and not (count.strip().isdecimal() and 1 <= int(count) <= _MOST_CARDS):
            raise HARDWARE_UNKNOWN(name=part.strip(), suggestion="write several as rtx-3090*2")
        names += [name.strip()] * (int(count) if star else 1)
    return names
