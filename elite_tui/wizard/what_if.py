"""Describes another machine to plan for, typed beside the tier table. It changes the tiers shown, never a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.errors.planning import WHAT_IF_WITHOUT_GPU
from engine.errors.usage import CONFIG_INVALID

if TYPE_CHECKING:
    from elite_tui.wizard.draft import Draft
    from engine.hardware.machine import Machine

FIELDS = ("card", "vram", "ram")
LARGEST_GIB = 1e6


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The what-if machine as typed; an empty field means this machine's value."""

    card: str = ""
    "A GPU of the catalogue."
    vram: str = ""
    "GiB."
    ram: str = ""
    "GiB."

    @classmethod
    def of(cls, draft: Draft) -> WhatIf:
        """Loads the what-if machine that the draft keeps."""
        return cls(**{name: draft.kept(key_of(name)).strip() for name in FIELDS})

    @property
    def active(self) -> bool:
        """Whether any field is set."""
        return bool(self.card or self.vram or self.ram)

    def apply(self, machine: Machine) -> Machine:
        """Applies the typed fields to `machine`.

        Raises:
            EliteError: HARDWARE_UNKNOWN for the card, NO_GPU for GPU memory without one, CONFIG_INVALID for a size.
        """
        from engine.hardware.cards import SYSTEM_RAM, find_card, simulate

        vram, ram = bytes_of("VRAM", self.vram), bytes_of("RAM", self.ram)
        if self.card:
            card = find_card(self.card)
            machine = replace(
                simulate(
                    card,
                    ram_bytes=machine.ram_total,
                    disk_bytes=machine.disk_free,
                    cpu_cores=machine.cpu_cores,
                ),
                ram_available=machine.ram_available,
                disk_total=machine.disk_total,
                disk_kind=machine.disk_kind,
            )
        if vram is not None:
            if not machine.gpus:
                raise WHAT_IF_WITHOUT_GPU(vram=self.vram)
            first = replace(machine.gpus[0], memory_total=vram, memory_free=vram)
            machine = replace(machine, gpus=(first, *machine.gpus[1:]))
        if ram is not None:
            machine = replace(machine, ram_total=ram, ram_available=max(0, ram - SYSTEM_RAM), ram_limited_by=None)
        return machine


def key_of(name: str) -> str:
    """Returns the key under which the draft keeps a field."""
    return f"what-if.{name}"


def bytes_of(label: str, text: str) -> int | None:
    """Parses a size typed in GiB to bytes; returns None for empty text.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    from engine.hardware.machine import GIB

    if not text:
        return None
    try:
        value = float(text.lower().removesuffix("gib").removesuffix("gb"))
    except ValueError:
        value = math.nan
    if not 0 < value <= LARGEST_GIB:
        raise CONFIG_INVALID(
            source="what if", field=label, problem=f"{text} is not a size in GiB", remedy="write for example 24"
        )
    return round(value * GIB)
