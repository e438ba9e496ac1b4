"""Formats a machine: inventory, libraries with their purpose and installation, and measurements."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from textual.content import Content

from elite_tui.format.figures import NOT_AVAILABLE, bytes_in_words, printable
from elite_tui.format.layout import hanging

if TYPE_CHECKING:
    from elite_tui.remote_data import RemoteData
    from engine.hardware.machine import Gpu, Machine
    from engine.hardware.measured import Measured

_LABEL = 10
_LIBRARY = 15
_VERSION = 11
_MEASURE = 24

GET: dict[str, str] = {
    "bitsandbytes": "pip install 'elite-tui[quant]'",
    "triton": "pip install triton",
    "liger-kernel": "pip install liger-kernel",
    "deepspeed": "pip install deepspeed",
    "fla-core": "pip install fla-core",
    "flash-attn": "pip install flash-attn --no-build-isolation (needs nvcc; compiles for up to an hour)",
    "flash-attn-4": "pip install 'elite-tui[flash-attn-4]'",
}
"Installation of each library that is not part of every installation."
GPU_ONLY = frozenset({"triton", "liger-kernel", "fla-core", "flash-attn", "flash-attn-4"})
"Libraries that have no effect without a GPU."


def inventory(machine: Machine, width: int) -> Content:
    """Formats the machine's inventory, one device per line."""
    rows: list[tuple[str, str]] = []
    for gpu in machine.gpus:
        rows.append((f"GPU {gpu.index}", gpu.name))
        rows.append(("", ", ".join(_gpu_details(gpu))))
    if not machine.gpus:
        rows.append(("GPU", "none found: training runs on the CPU"))
    limited = f", limited by {machine.ram_limited_by}" if machine.ram_limited_by else ""
    kind = f", {machine.disk_kind}" if machine.disk_kind else ""
    rows += [
        ("CPU", f"{machine.cpu_name or NOT_AVAILABLE}, {machine.cpu_cores} cores"),
        ("RAM", f"{bytes_in_words(machine.ram_total)}, {bytes_in_words(machine.ram_available)} available{limited}"),
        ("Swap", bytes_in_words(machine.swap_total)),
        ("Disk", f"{bytes_in_words(machine.disk_free)} free of {bytes_in_words(machine.disk_total)}{kind}"),
    ]
    lines: list[Content] = []
    if machine.simulated:
        text = f"! simulated: plans are for {printable(machine.simulated)}; training uses what is really here"
        lines += Content.styled(text, "$text-warning").wrap(width)
    for name, text in rows:
        lines += hanging(Content.styled(f"{name:<{_LABEL}}", "$muted"), Content(printable(text)), width)
    return Content("\n").join(lines)


def _gpu_details(gpu: Gpu) -> list[str]:
    details = [bytes_in_words(gpu.memory_total)]
    if gpu.architecture:
        details.append(gpu.architecture)
    if gpu.compute_capability:
        details.append("compute capability {}.{}".format(*gpu.compute_capability))
    details.append("bf16" if gpu.has_bf16 else "fp16 only")
    if gpu.pcie_generation and gpu.pcie_lanes:
        details.append(f"PCIe {gpu.pcie_generation} × {gpu.pcie_lanes}")
    if gpu.driver:
        details.append(f"driver {gpu.driver}")
    if gpu.mig:
        details.append("MIG on")
    if gpu.processes:
        details.append(f"{gpu.processes} process{'es' if gpu.processes > 1 else ''} on it")
    return details


def libraries(machine: Machine, width: int) -> Content:
    """Formats each library's presence, purpose and installation."""
    from engine.hardware.inventory import LIBRARIES

    lines: list[Content] = []
    if not machine.libraries:
        return Content.styled("a simulated machine is taken to have what it needs", "$muted")
    for name, version in machine.libraries.items():
        head = Content.assemble(
            ("✓ ", "$text-success") if version else ("○ ", "$muted"),
            (f"{printable(name):<{_LIBRARY}}", "" if version else "$muted"),
            (f"{printable(version or 'not here'):<{_VERSION}}", "" if version else "$muted"),
        )
        enables = Content.styled(LIBRARIES.get(name, ""), "$muted")
        lines += hanging(head, enables, width)
        if version is None:
            how = GET.get(name, "pip install --force-reinstall elite-tui")
            text = "of no use without a GPU" if name in GPU_ONLY and not machine.gpus else how
            lines += hanging(Content(" " * head.cell_length), Content.styled(f"→ {text}", "$text-accent"), width)
    return Content("\n").join(lines)


def measured(machine: Machine | None, fetched: RemoteData[dict[str, Any]], progress: str, width: int) -> Content:
    """Formats the results of `engine profile`, its progress, or a note that it has not run."""
    if fetched.loading:
        return Content.assemble(("measuring … ", "$text-accent"), printable(progress))
    lines = []
    if fetched.error is not None:
        lines += hanging(Content.styled("✗ ", "$text-error"), Content(printable(str(fetched.error))), width)
    found = machine.measured if machine is not None else None
    if found is None:
        text = "Not measured yet: times are predicted from data sheets. Measuring takes about a minute."
        return Content("\n").join([*lines, *Content.styled(text, "$muted").wrap(width)])
    day = time.strftime("%d %b %Y", time.localtime(found.time))
    lines.append(Content.styled(f"on {day} with torch {found.torch}; the plans use these figures", "$muted"))
    if found.doubt:
        lines += hanging(Content.styled("! ", "$text-warning"), Content(printable(found.doubt)), width)
    if found.gpu_problem:
        lines += hanging(Content.styled("! ", "$text-warning"), Content(printable(found.gpu_problem)), width)
    for label, text in figures(found):
        lines += hanging(Content.styled(f"{label:<{_MEASURE}}", "$muted"), Content(printable(text)), width)
    return Content("\n").join(lines)


def figures(found: Measured) -> list[tuple[str, str]]:
    """Returns the measured figures with their units, without those that were not measured."""
    rows = []
    if found.gpu_room is not None:
        rows.append(("GPU memory", f"{bytes_in_words(found.gpu_room)} can be had"))
    for form, rate in found.matrix.items():
        rows.append((f"matrices, {form}", _operations(rate)))
    for kernel in found.attention:
        speeds = f"{_operations(kernel.forward)} forward, {_operations(kernel.backward)} backward"
        rows.append((f"{kernel.backend}, head {kernel.head_dim}", speeds))
    for label, *rates in (
        ("inside the GPU", found.device_copy),
        ("host ↔ GPU, pinned", found.to_device, found.to_host),
        ("RAM, write and copy", found.ram_write, found.ram_copy),
        ("disk, write and read", found.disk_write, found.disk_read),
    ):
        known = [f"{bytes_in_words(rate)}/s" for rate in rates if rate is not None]
        if known:
            rows.append((label, ", ".join(known)))
    return rows


def _operations(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s"
