"""The catalogue of known cards: their data-sheet figures, and machines simulated with them."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from dataclasses import dataclass

from engine import errors
from engine.assets import asset
from engine.hardware.machine import GIB, Gpu, Machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SYSTEM_RAM = 2 * GIB
"Assumed to be taken by the system of a simulated machine."


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card of assets/gpus.toml."""

    key: str
    name: str
    "As the driver reports it."
    architecture: str
    memory: int
    "Bytes."
    bandwidth: float
    "Bytes a second of its own memory."
    tensor_flops: float
    "Dense fp16 / bf16 operations a second, fp32 accumulation."
    compute_capability: tuple[int, int]
    pcie_generation: int
    pcie_lanes: int


@functools.cache
def cards() -> dict[str, Card]:
    """Every known card by key, in the file's order."""
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
    """The card of that key; spaces, case, "NVIDIA" and "GeForce" do not matter.

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
    near = sized or difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    suggestion = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise errors.HARDWARE_UNKNOWN(name=name or "''", suggestion=suggestion)


def match_card(name: str, memory_total: int | None) -> Card | None:
    """The known card that a driver reports under this name, the nearest in memory where several share it."""
    same = [card for card in cards().values() if card.name.lower() == name.lower()]
    return min(same, key=lambda card: abs(card.memory - (memory_total or 0)), default=None)


def simulate(card: Card, *, ram_bytes: int, disk_bytes: int, cpu_cores: int = 8) -> Machine:
    """A machine with that card, this much RAM and this much free disk."""
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
