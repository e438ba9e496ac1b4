"""Rates of a machine for a workload: measured where `engine profile` has run, otherwise by data sheet.

Data-sheet figures are multiplied by an efficiency for each kind of work. The efficiencies were fitted to the steps of
benchmarks/results/memory-h100.json. On other GPUs they are assumed, and a predicted time says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.hardware.machine import Gpu, Machine
from engine.hardware.measured import NARROW, WIDE, Measured
from engine.plan.workload import Backend, Workload

ATTENTION_BACKWARD = 2.5
"Matrix products of attention's backward pass, relative to its forward pass (5 products against 2)."
MATRIX_EFFICIENCY = 0.63
"Share of the tensor rate that products with wide matrices reach over a whole step, fitted to steps of an H100."
CARD_MATRIX_EFFICIENCY = {"h200": 0.82}
"""The same for cards that were measured themselves. On an H200 the products of the 7B's layers alone took 6.94 s over
131,072 tokens, 0.86 of the tensor rate. With the H100's 0.63, 4-bit steps of 7B and 32B over 32,768 tokens were
predicted 13 to 16% too long, with weights resident as with weights streamed (docs/benchmarks.md)."""
NARROW_MATRIX = 500
"Width at which an H100 reaches half of that rate; narrower matrices fill a slower GPU, in proportion."
H100_FLOPS = 989.4e12
LINK_EFFICIENCY = 0.83
"Share of PCIe's rate that pinned copies reach (53 of 63 GB/s measured on generation 5)."
LAUNCH_SECONDS = 10e-6
"Seconds to launch one operation, on the host of that H100."

CPU_FLOPS_A_CORE = 80e9
"2.5 GHz × 2 fused units × 8 lanes × 2: AVX2, fp32."
CPU_MATRIX_EFFICIENCY = 0.5
CPU_ATTENTION_EFFICIENCY = (0.25, 0.2)
CPU_MEMORY_BANDWIDTH = 20e9

WIDE_HEAD = 128
"Head size from which on a kernel reaches its full rate."
_HOPPER_ATTENTION: dict[tuple[Backend, bool], tuple[float, float]] = {
    ("cudnn", True): (0.64, 0.53),
    ("cudnn", False): (0.43, 0.46),
    # Compiled for Ampere's tensor instructions, which reach a part of Hopper's rate.
    ("flash", True): (0.34, 0.34),
    ("flash", False): (0.25, 0.26),
    ("efficient", True): (0.11, 0.115),
    ("efficient", False): (0.08, 0.085),
}
"""(Forward, backward) share of the tensor rate, by kernel and whether heads are wide. Measured as attention's part of
the stages of benchmarks/results/memory-h100.json, at 64K to 512K tokens for cuDNN and at 32K to 128K for other kernels.

cuDNN with wide heads reached (0.70, 0.58) in those stages of one layer, and about nine tenths of that over a whole
window: attention alone took 9.4 s at 128K and 37.6 s at 256K of the 1.5B on an H200 (docs/benchmarks.md), 1.10 times
the prediction from the short rates. With heads of 64 it took the predicted time (93.8 s at 512K of the 0.5B, 1.01
times). The cause is unknown; power may limit it. The rates here are calibrated to whole windows, since the steps of a
run follow each other."""

_HOPPER_256: dict[Backend, tuple[float, float]] = {"cudnn": (0.41, 0.34), "flash": (0.32, 0.265)}
"""The same for heads wider than 128. FlashAttention-2 was measured on an H200 as its kernels' time in a step of the
shapes of Qwen3.5-2B over 65,536 tokens: 0.33 and 1.0 s for 1.06e14 and 2.64e14 operations (docs/benchmarks.md). cuDNN
took 3.57 s there for 1.48e15 operations of a step over 131,072 tokens in tiles of 16,384 (0.42 of the rate), and what
attention left of a step over 524,288 tokens in tiles of 8,192 is 0.30 of it: these shares lie between, divided between
the passes as for heads of 128."""

WIDEST_FLASH = 256
"Head size beyond which the memory-efficient kernel alone serves."
_VERY_WIDE = (0.10, 0.042)
"""The same for heads of 512. Two steps on an H200 (Gemma 4 12B, E4B; 32,768 tokens, docs/benchmarks.md) leave it 0.18
and 0.06 of the rate forward, 0.046 and 0.035 backward, less all other parts of their times."""
_AMPERE_GAIN = 2.06
"Shares that kernels compiled for Ampere reach there, relative to Hopper: those of FlashAttention-2 above."

_SOFTCAPPED = (0.06, 0.05)
"""The same for capped scores, in fp32 and written out: an estimate. Some ten passes over each score at 1 TB/s, and fp32
products at a third of the 16-bit rate, take about that on Ampere; no GPU was measured."""

UNKNOWN_GPU_FLOPS = 20e12
"A GPU that is not in the catalogue counts as a slow one."
UNKNOWN_GPU_BANDWIDTH = 250e9
DISK_BANDWIDTH = {"nvme": 1.5e9, "ssd": 0.4e9, "hdd": 0.12e9, "network": 0.1e9}
"Sustained bytes a second, in each direction. An unknown disk counts as ssd."


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Rates that the time model divides by, in operations or bytes a second."""

    matrix: float
    "Operations a second of products as wide as the model's hidden states."
    head: float
    "Operations a second of products as wide as its vocabulary."
    attention_forward: float
    attention_backward: float
    memory: float
    link: float
    "Bytes a second between host and GPU, in each direction."
    disk: float
    ram: float = CPU_MEMORY_BANDWIDTH / 2
    "Bytes a second written to host memory."
    launch: float = LAUNCH_SECONDS
    corrections: Mapping[str, float] = field(default_factory=dict)
    "See `Measured`."
    past_runs: Mapping[str, float] = field(default_factory=dict)
    "The same ratios of past runs' updates (engine.hardware.past_runs)."


def attention_efficiency(gpu: Gpu, head_dim: int, backend: Backend) -> tuple[float, float]:
    """Returns the share of the tensor rate that attention reaches, forward and backward. Measured on Hopper only."""
    capability, wide = gpu.compute_capability or (8, 0), head_dim >= WIDE_HEAD
    if backend == "softcapped":
        return _SOFTCAPPED
    if head_dim > WIDEST_FLASH:
        gain = 1.0 if capability[0] == 9 else _AMPERE_GAIN
        return gain * _VERY_WIDE[0], gain * _VERY_WIDE[1]
    if capability < (8, 0):
        return 0.35, 0.25  # memory-efficient kernels; FlashAttention needs Ampere
    if capability[0] == 9 and head_dim > WIDE_HEAD and backend in _HOPPER_256:
        return _HOPPER_256[backend]
    if capability[0] == 9:
        return _HOPPER_ATTENTION[backend, wide]
    return (0.70, 0.55) if wide else (0.60, 0.47)


def speeds_of(machine: Machine, work: Workload) -> Speeds:
    """Returns a machine's rates for a workload: measured where `engine profile` has run, otherwise by data sheet."""
    speeds = _by_data_sheet(machine, work)
    if machine.past is not None:
        speeds = replace(speeds, past_runs=machine.past.step_factors())
    measured = machine.measured
    return speeds if measured is None else _as_measured(speeds, measured, work)


def _by_data_sheet(machine: Machine, work: Workload) -> Speeds:
    disk = DISK_BANDWIDTH.get(machine.disk_kind or "ssd", DISK_BANDWIDTH["ssd"])
    forward, backward = work.attention_efficiency
    if not work.on_gpu:
        peak = machine.cpu_cores * CPU_FLOPS_A_CORE
        return Speeds(
            matrix=peak * CPU_MATRIX_EFFICIENCY,
            head=peak * CPU_MATRIX_EFFICIENCY,
            attention_forward=peak * forward,
            attention_backward=peak * backward,
            memory=CPU_MEMORY_BANDWIDTH,
            link=CPU_MEMORY_BANDWIDTH,
            disk=disk,
        )
    gpu = machine.gpus[0]
    peak = gpu.tensor_flops or UNKNOWN_GPU_FLOPS
    if work.compute_type == "fp32":
        peak /= 8  # tensor cores sit idle; a tenth to a quarter of the rate is left, by GPU
    lanes, generation = gpu.pcie_lanes or 8, gpu.pcie_generation or 3
    efficiency = CARD_MATRIX_EFFICIENCY.get(gpu.card or "", MATRIX_EFFICIENCY)
    matrix, head = (
        peak * efficiency * width / (width + NARROW_MATRIX * peak / H100_FLOPS)
        for width in (work.spec.hidden_size, work.spec.vocab_size)
    )
    return Speeds(
        matrix=matrix,
        head=head,
        attention_forward=peak * forward,
        attention_backward=peak * backward,
        memory=gpu.memory_bandwidth or UNKNOWN_GPU_BANDWIDTH,
        # Generation 3 carries 0.985 GB/s per lane, and each later one twice that of the one before.
        link=0.985e9 * 2 ** (generation - 3) * lanes * LINK_EFFICIENCY,
        disk=disk,
    )


def _as_measured(speeds: Speeds, measured: Measured, work: Workload) -> Speeds:
    """Replaces data-sheet rates by measured ones; rates that were not measured stay."""
    found: dict[str, float | None] = {
        "matrix": _matrix_rate(measured, work, work.spec.hidden_size),
        "head": _matrix_rate(measured, work, work.spec.vocab_size),
        "memory": measured.device_copy if work.on_gpu else measured.ram_copy,
        "ram": measured.ram_write,
        "launch": measured.launch,
    }
    if measured.to_device and measured.to_host:
        found["link"] = min(measured.to_device, measured.to_host)
    if measured.disk_write and measured.disk_read:
        found["disk"] = 2 / (1 / measured.disk_write + 1 / measured.disk_read)
    attention = _attention_rates(measured, work)
    if attention:
        found["attention_forward"], found["attention_backward"] = attention
    known: dict[str, Any] = {name: rate for name, rate in found.items() if rate}
    return replace(speeds, corrections=measured.corrections, **known)


def _matrix_rate(measured: Measured, work: Workload, width: int) -> float | None:
    """Returns the rate at a width, from R·w / (w + c) through the two measured widths."""
    wide, narrow = (rates.get(work.compute_type) for rates in (measured.matrix, measured.narrow_matrix))
    if not wide or not narrow:
        return wide
    wide = max(wide, narrow)  # wider is never slower; a lower reading means that something else ran meanwhile
    ratio = min(wide / narrow, 0.9 * WIDE / NARROW)
    half = WIDE * NARROW * (ratio - 1) / (WIDE - ratio * NARROW)
    return wide * (WIDE + half) / WIDE * width / (width + half)


def _attention_rates(measured: Measured, work: Workload) -> tuple[float, float] | None:
    """Returns the rates of the fastest kernel at the measured head size that is nearest to the model's."""
    on_device = [
        rate
        for rate in measured.attention
        if (rate.backend == "cpu") != work.on_gpu and work.attention in (None, rate.backend)
    ]
    if not on_device:
        return None
    nearest = min((abs(rate.head_dim - work.spec.head_dim), rate.head_dim) for rate in on_device)[1]
    best = min(
        (rate for rate in on_device if rate.head_dim == nearest),
        key=lambda rate: 1 / rate.forward + ATTENTION_BACKWARD / rate.backward,
    )
    if nearest <= WIDEST_FLASH < work.spec.head_dim and work.on_gpu:
        return None  # another kernel serves than the one that was measured
    return best.forward, best.backward
