"""The machine to plan for: this one, or one with a card from the catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine import errors
from engine.hardware.cards import SYSTEM_RAM, find_card, simulate
from engine.hardware.inventory import take_inventory
from engine.hardware.machine import GIB, Machine

SIMULATED_RAM = 64 * GIB
SIMULATED_DISK = 500 * GIB
"What a simulated machine has where nobody said."


def target_machine(
    hardware: str = "auto",
    *,
    vram: int | None = None,
    ram: int | None = None,
    disk: int | None = None,
    disk_path: Path = Path(),
) -> Machine:
    """The machine that a plan is for.

    Args:
        hardware: "auto" is this machine; else a card of the catalogue, in a machine with SIMULATED_RAM and _DISK.
        vram: Bytes of the GPU's memory, instead of what it has.
        ram: Bytes of RAM, instead of what there is.
        disk: Bytes of free disk, instead of what there is.
        disk_path: Where the run would be written.

    Raises:
        EliteError: HARDWARE_UNKNOWN; NO_GPU where `vram` is given and there is none.
    """
    if hardware.strip().lower() != "auto":
        card = find_card(hardware)
        if vram is not None:
            card = replace(card, memory=vram)
        ram_bytes = SIMULATED_RAM if ram is None else ram
        return simulate(card, ram_bytes=ram_bytes, disk_bytes=SIMULATED_DISK if disk is None else disk)
    machine = take_inventory(disk_path)
    if vram is not None:
        if not machine.gpus:
            raise errors.NO_GPU()
        first = replace(machine.gpus[0], memory_total=vram, memory_free=vram)
        machine = replace(machine, gpus=(first, *machine.gpus[1:]))
    if ram is not None:
        machine = replace(machine, ram_total=ram, ram_available=max(0, ram - SYSTEM_RAM), ram_limited_by=None)
    if disk is not None:
        machine = replace(machine, disk_free=disk, disk_total=max(disk, machine.disk_total))
    return machine
