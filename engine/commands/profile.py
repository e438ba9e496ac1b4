"""`engine profile`: prints this machine's hardware and measured rates."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.commands.output import print_json
from engine.commands.status_line import status_line
from engine.errors.runs import OUTPUT_UNWRITABLE
from engine.hardware import measured_files
from engine.hardware.inventory import LIBRARIES, Machine, take_inventory
from engine.quantities import format_bytes

if TYPE_CHECKING:
    from engine.hardware.measured import Measured


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine profile`."""
    parser.add_argument(
        "--quick", action="store_true", help="Only what can be read without measuring, and what was measured before."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out"), metavar="DIR", help="Folder whose disk is looked at."
    )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Prints the inventory and the measurements, which later plans use."""
    machine = take_inventory(args.output)
    if not args.quick:
        machine = replace(machine, measured=_measure(machine, args.output))
    if args.json:
        print_json(describe(machine))
    else:
        _print_machine(machine)
    return 0


def _measure(machine: Machine, output: Path) -> Measured:
    """Measures with a line of progress, and stores the figures."""
    from rich.console import Console

    from engine.hardware.profiling import ProfileProgress, profile_machine

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    folder = next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())
    with status_line(console, "starting") as update:

        def notify(progress: ProfileProgress) -> None:
            line = f"{progress.what} ({progress.done + 1} of {progress.total})"
            update(line)
            if not console.is_terminal:
                console.print(line)

        found = profile_machine(machine, folder, notify)
    try:
        measured_files.store(machine, found)
    except OSError as error:
        raise OUTPUT_UNWRITABLE(path="the user's cache folder", problem=error) from error
    return found


def describe(machine: Machine) -> dict[str, Any]:
    """Returns the inventory as JSON values: bytes, bytes a second, operations a second; null is unknown."""
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
    if machine.measured is None:
        console.print("not measured yet: `engine profile` does it in about a minute", style="dim")
        return
    figures = Table(box=None, show_header=False)
    figures.add_column(style="bold")
    figures.add_column()
    for label, text in _figures(machine.measured):
        figures.add_row(label, text)
    console.print(figures)


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
        lines.append(("GPU", "none found: training runs on the CPU"))
    lines.append(("CPU", f"{machine.cpu_name or 'n/a'}, {machine.cpu_cores} cores to use"))
    limit = f" ({machine.ram_limited_by} sets the limit)" if machine.ram_limited_by else ""
    lines.append(("RAM", f"{_bytes(machine.ram_available)} free of {_bytes(machine.ram_total)}{limit}"))
    lines.append(("swap", _bytes(machine.swap_total)))
    kind = machine.disk_kind or "unknown kind"
    lines.append(("disk", f"{_bytes(machine.disk_free)} free of {_bytes(machine.disk_total)}, {kind}"))
    return lines


def _bytes(count: int | None) -> str:
    return "n/a" if count is None else format_bytes(count)


def _figures(measured: Measured) -> list[tuple[str, str]]:
    day = time.strftime("%Y-%m-%d", time.localtime(measured.time))
    lines = [("measured", f"{day}, torch {measured.torch}")]
    if measured.doubt:
        lines.append(("other work", measured.doubt))
    if measured.gpu_problem:
        lines.append(("GPU", measured.gpu_problem))
    if measured.gpu_room is not None:
        context = f"; a process keeps {_bytes(measured.gpu_context)} for itself" if measured.gpu_context else ""
        lines.append(
            (
                "GPU memory",
                f"{_bytes(measured.gpu_room)} can be had, {_bytes(measured.gpu_largest)} in one piece{context}",
            )
        )
    for form, rate in measured.matrix.items():
        narrow = measured.narrow_matrix.get(form)
        beside = "" if narrow is None else f", {_operations(narrow)} where they are narrow"
        lines.append((f"matrices, {form}", f"{_operations(rate)}{beside}"))
    for kernel in measured.attention:
        text = f"{_operations(kernel.forward)} forward, {_operations(kernel.backward)} backward"
        lines.append((f"attention, {kernel.backend}, head size {kernel.head_dim}", text))
    if measured.launch is not None:
        lines.append(("starting an operation", f"{measured.launch * 1e6:.1f} µs"))
    pairs = (
        ("copies inside the GPU", measured.device_copy, None),
        ("to and from the GPU, pinned", measured.to_device, measured.to_host),
        ("to and from the GPU, not pinned", measured.to_device_pageable, measured.to_host_pageable),
        ("RAM, written and copied", measured.ram_write, measured.ram_copy),
        ("disk, written and read", measured.disk_write, measured.disk_read),
    )
    for label, *rates in pairs:
        known = [f"{_bytes(round(rate))}/s" for rate in rates if rate is not None]
        if known:
            lines.append((label, ", ".join(known)))
    return lines


def _operations(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s"
