"""`engine profile`: what this machine has."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.cli import print_json
from engine.hardware.inventory import LIBRARIES, Machine, take_inventory
from engine.plan.quantities import format_bytes

NAMES = ("profile",)
SUMMARY = "Show what this machine has: GPUs, processor, memory, disk, and what each library enables."


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """The options of `engine profile`."""
    parser.add_argument("--quick", action="store_true", help="Only what can be read without measuring.")
    parser.add_argument(
        "--output", type=Path, default=Path("out"), metavar="DIR", help="Folder whose disk is looked at."
    )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Prints the inventory."""
    machine = take_inventory(args.output)
    if args.json:
        print_json(describe(machine))
    else:
        _print_machine(machine)
    return 0


def describe(machine: Machine) -> dict[str, Any]:
    """The inventory as JSON values: bytes, bytes a second, operations a second; null is unknown."""
    described = asdict(machine)
    described["libraries"] = {
        name: {"version": version, "enables": LIBRARIES[name]} for name, version in machine.libraries.items()
    }
    return described


def _print_machine(machine: Machine) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for label, text in _lines(machine):
        table.add_row(label, text)
    console.print(table)
    libraries = Table("library", "version", "enables", box=None, header_style="bold")
    for name, version in machine.libraries.items():
        libraries.add_row(name, version or "not installed", LIBRARIES[name], style=None if version else "dim")
    console.print(libraries)


def _lines(machine: Machine) -> list[tuple[str, str]]:
    lines = []
    for gpu in machine.gpus:
        memory = f"{_bytes(gpu.memory_free)} free of {_bytes(gpu.memory_total)}"
        others = "" if not gpu.processes else f", {gpu.processes} processes hold memory on it"
        lines.append((f"GPU {gpu.index}", f"{gpu.name}, {memory}{others}"))
        capability = ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "n/a"
        link = f"PCIe {gpu.pcie_generation or 'n/a'} x{gpu.pcie_lanes or 'n/a'}"
        mig = "" if gpu.mig is None else f", MIG {'on' if gpu.mig else 'off'}"
        lines.append(
            ("", f"{gpu.architecture or 'unknown architecture'}, compute capability {capability}, {link}{mig}")
        )
        lines.append(("", f"driver {gpu.driver or 'n/a'}, CUDA up to {gpu.cuda or 'n/a'}"))
    if not machine.gpus:
        lines.append(("GPU", "none found: training runs on the processor"))
    lines.append(("processor", f"{machine.cpu_name or 'n/a'}, {machine.cpu_cores} cores to use"))
    limit = f" ({machine.ram_limited_by} sets the limit)" if machine.ram_limited_by else ""
    lines.append(("RAM", f"{_bytes(machine.ram_available)} free of {_bytes(machine.ram_total)}{limit}"))
    lines.append(("swap", _bytes(machine.swap_total)))
    kind = machine.disk_kind or "unknown kind"
    lines.append(("disk", f"{_bytes(machine.disk_free)} free of {_bytes(machine.disk_total)}, {kind}"))
    return lines


def _bytes(count: int | None) -> str:
    return "n/a" if count is None else format_bytes(count)
