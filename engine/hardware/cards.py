"""Catalogue of known GPUs with their data-sheet figures, and machines simulated with them."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from dataclasses import dataclass

from engine.assets import asset
from engine.errors.planning import HARDWARE_UNKNOWN
from engine.hardware.machine import GIB, Gpu, Machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SYSTEM_RAM = 2 * GIB
"RAM in bytes that the system of a simulated machine is assumed to use."


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU model of assets/gpus.toml."""

    key: str
    name: str
    "Name that the driver reports."
    architecture: str
    memory: int
    "Bytes."
    bandwidth: float
    "Memory bandwidth in bytes per second."
    tensor_flops: float
    "Dense fp16 / bf16 operations per second, fp32 accumulation."
    compute_capability: tuple[int, int]
    pcie_generation: int
    pcie_lanes: int


@functools.cache
def cards() -> dict[str, Card]:
    """Loads every known GPU model by key, in the file's order."""
    data = tomllib.loads(asset("gpus.toml").read_text(encoding="utf-8"))
    found = {}
    for key, entry in data["cards"].items():
        family = data["families"][entry["family"]]
        generation, lanes = entry.get("pcie", family["pcie"])
        found[key] = Card(
            key=key,
            name=entry["name"],
            architecture=family.get("architecture", entry["family"]),
            memory=entry["memory"] * GIB,
            bandwidth=entry["bandwidth"] * 1e9,
            tensor_flops=entry["tflops"] * 1e12,
            compute_capability=tuple(family["capability"]),
            pcie_generation=generation,
            pcie_lanes=lanes,
        )
    return found


def find_card(name: str) -> Card:
    """Finds a GPU model by key. Spaces, case, "NVIDIA" and "GeForce" do not matter.

    Raises:
        EliteError: HARDWARE_UNKNOWN, with the nearest names.
    """
    known = cards()
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    key = re.sub(r"^(nvidia-)?(geforce-)?", "", key).removesuffix("-gpu")
    if key in known:
        return known[key]
    sized = [k for k in known if k.startswith(f"{key}-") and k.endswith("gb")]
    if len(sized) == 1:
        return known[sized[0]]
    near = sized or _nearest(key, list(known))
    raise HARDWARE_UNKNOWN(name=name or "''", suggestion=f"did you mean {' or '.join(near)}?")


def _nearest(key: str, known: list[str]) -> list[str]:
    """Returns the three names that begin with a key, or are most like it with or without their memory."""
    named = {re.sub(r"-\d+gb$", "", name): name for name in reversed(known)} | {name: name for name in known}
    begin = [name for name in known if key and name.startswith(key)]
    alike = [named[name] for name in difflib.get_close_matches(key, named, n=6, cutoff=0.0)]
    return list(dict.fromkeys([*begin, *alike]))[:3]


def match_card(name: str, memory_total: int | None) -> Card | None:
    """Finds the GPU model with the driver's name; the nearest in memory if several share it."""
    same = [card for card in cards().values() if card.name.lower() == name.lower()]
    return min(same, key=lambda card: abs(card.memory - (memory_total or 0)), default=None)


def simulate(card: Card, *, ram_bytes: int, disk_bytes: int, cpu_cores: int = 8) -> Machine:
    """Returns a simulated machine with one GPU, and the given RAM and free disk in bytes."""
    gpu = Gpu(
        index=0,
        name=card.name,
        card=card.key,
        memory_total=card.memory,
        memory_free=card.memory,
        architecture=card.architecture,
        compute_capability=card.compute_capability,
        memory_bandwidth=card.bandwidth,
        tensor_flops=card.tensor_flops,
        pcie_generation=card.pcie_generation,
        pcie_lanes=card.pcie_lanes,
    )
    return Machine(
        gpus=(gpu,),
        cpu_cores=cpu_cores,
        ram_total=ram_bytes,
        ram_available=max(0, ram_bytes - SYSTEM_RAM),
        disk_free=disk_bytes,
        disk_total=disk_bytes,
        disk_kind="nvme",
        simulated=card.key,
    )
