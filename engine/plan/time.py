"""The time model: how long one window takes, as named parts with their formulas.

Rates are data-sheet figures times an efficiency for each kind of work. The efficiencies were measured on one H100 and
assumed elsewhere, until `engine profile` calibrates them: a predicted time says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.hardware.machine import Gpu, Machine
from engine.plan.memory import NF4_BITS, BaseWeights
from engine.plan.stream_plan import StreamPlan
from engine.plan.workload import Workload

ATTENTION_BACKWARD = 2.5
"Matrix products of attention's backward pass, in units of its forward pass (5 products against 2)."
MATRIX_EFFICIENCY = 0.4
"Share of the tensor rate that the linear layers reach, with adapters and small tiles."
ELEMENTWISE_PASSES = 12
"Times that a layer's activations cross the GPU's memory in a step, outside matrix products."
OVERLAP = 0.8
"Share of the transfers that hides behind computing."
LINK_EFFICIENCY = 0.83
"Share of PCIe's rate that pinned copies reach (53 of 63 GB/s measured on generation 5)."
LAUNCH_SECONDS = 1e-3
"One pass of one tile through one layer, when its kernels are too small to matter."

CPU_FLOPS_A_CORE = 80e9
"2.5 GHz × 2 fused units × 8 lanes × 2: AVX2, fp32."
CPU_MATRIX_EFFICIENCY = 0.5
CPU_ATTENTION_EFFICIENCY = (0.25, 0.2)
CPU_MEMORY_BANDWIDTH = 20e9

UNKNOWN_GPU_FLOPS = 20e12
"A GPU that is not in the catalogue is taken to be a slow one."
UNKNOWN_GPU_BANDWIDTH = 250e9
DISK_BANDWIDTH = {"nvme": 1.5e9, "ssd": 0.4e9, "hdd": 0.12e9, "network": 0.1e9}
"Sustained bytes a second, each way. An unknown disk counts as ssd."


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Rates that the model divides by: operations or bytes a second."""

    matrix: float
    attention_forward: float
    attention_backward: float
    memory: float
    link: float
    "Host and GPU, each way."
    disk: float
    launch: float = LAUNCH_SECONDS


@dataclass(frozen=True, kw_only=True)
class TimePart:
    """One line of the time model."""

    name: str
    seconds: float
    formula: str


def attention_efficiency(gpu: Gpu, head_dim: int) -> tuple[float, float]:
    """Share of the tensor rate that attention reaches, forward and backward. Hopper's were measured (docs)."""
    capability = gpu.compute_capability or (8, 0)
    if capability < (8, 0):
        return 0.35, 0.25  # memory-efficient kernels; FlashAttention needs Ampere
    if capability[0] == 9:
        return (0.70, 0.58) if head_dim >= 128 else (0.50, 0.46)
    return (0.70, 0.55) if head_dim >= 128 else (0.60, 0.47)


def speeds_of(machine: Machine, work: Workload) -> Speeds:
    """The rates of a machine for a workload."""
    disk = DISK_BANDWIDTH.get(machine.disk_kind or "ssd", DISK_BANDWIDTH["ssd"])
    forward, backward = work.attention_efficiency
    if not work.on_gpu:
        peak = machine.cpu_cores * CPU_FLOPS_A_CORE
        return Speeds(
            matrix=peak * CPU_MATRIX_EFFICIENCY,
            attention_forward=peak * forward,
            attention_backward=peak * backward,
            memory=CPU_MEMORY_BANDWIDTH,
            link=CPU_MEMORY_BANDWIDTH,
            disk=disk,
        )
    gpu = machine.gpus[0]
    peak = gpu.tensor_flops or UNKNOWN_GPU_FLOPS
    if work.compute_type == "fp32":
        peak /= 8  # tensor cores sit idle; a tenth to a quarter of the rate is left, by card
    lanes, generation = gpu.pcie_lanes or 8, gpu.pcie_generation or 3
    return Speeds(
        matrix=peak * MATRIX_EFFICIENCY,
        attention_forward=peak * forward,
        attention_backward=peak * backward,
        memory=gpu.memory_bandwidth or UNKNOWN_GPU_BANDWIDTH,
        # Generation 3 carries 0.985 GB/s a lane, and each later one twice that.
        link=0.985e9 * 2 ** (generation - 3) * lanes * LINK_EFFICIENCY,
        disk=disk,
    )


def whole_sequence_time(work: Workload, weights: BaseWeights, speeds: Speeds) -> tuple[TimePart, ...]:
    """One window at once with checkpointing: every layer runs forward twice and backward once."""
    return (
        *_attention_parts(work, speeds, forwards=2),
        *_matrix_parts(work, speeds, forwards=2, refill=False),
        *_unpacking_parts(work, weights, speeds, passes=3),
        _elementwise_part(work, speeds),
        _launch_part(work.spec.layers * 3, speeds),
    )


def streamed_time(work: Workload, plan: StreamPlan, speeds: Speeds) -> tuple[TimePart, ...]:
    """One exact streamed step: forward, loss, and for each layer in reverse a refill of K, V and the backward pass."""
    spec, n = work.spec, work.context
    tiles = -(-n // min(plan.tile, n))
    again = 1 - 1 / plan.checkpoint_every
    attention_forwards = 1 if plan.stash else 2 + again
    passes = 3 + again
    computing = [
        *_attention_parts(work, speeds, forwards=attention_forwards),
        *_matrix_parts(work, speeds, forwards=2 + again, refill=True),
        *_unpacking_parts(work, plan.weights, speeds, passes=tiles * passes),
        _elementwise_part(work, speeds),
        _prefix_part(work, speeds, tiles),
        _launch_part(spec.layers * tiles * passes, speeds),
    ]
    transfers = _transfer_seconds(work, plan, speeds, tiles, again)
    busy = sum(part.seconds for part in computing)
    # What overlaps costs nothing up to the computing time; the rest, and all beyond that time, is waited for.
    waited = transfers - OVERLAP * min(transfers, busy)
    waiting = TimePart(
        name="waiting for transfers",
        seconds=waited,
        formula=f"{transfers:,.3g} s of transfers, of which {OVERLAP:.0%} hides behind {busy:,.3g} s of computing",
    )
    return (*computing, waiting) if waited else tuple(computing)


def total_seconds(parts: tuple[TimePart, ...]) -> float:
    """Seconds of one window."""
    return sum(part.seconds for part in parts)


def attention_flops(work: Workload) -> float:
    """Operations of one forward pass of attention over all layers: 4 · pairs · heads · head_dim a layer.

    Causal: n²/2 pairs; with a sliding window of w tokens n·w − w²/2.
    """
    n, spec = work.context, work.spec
    pairs = n * n / 2
    window = min(spec.sliding_window or n, n)
    windowed = n * window - window * window / 2
    full = spec.full_attention_layers
    return 4 * work.query_width * (full * pairs + (spec.layers - full) * windowed)


def _attention_parts(work: Workload, speeds: Speeds, forwards: float) -> list[TimePart]:
    flops = attention_flops(work)
    forward, backward = forwards * flops, ATTENTION_BACKWARD * flops
    return [
        TimePart(
            name="attention, forward",
            seconds=forward / speeds.attention_forward,
            formula=f"{forwards:g} × {flops:.3g} operations at {speeds.attention_forward / 1e12:.3g} TFLOP/s",
        ),
        TimePart(
            name="attention, backward",
            seconds=backward / speeds.attention_backward,
            formula=f"{ATTENTION_BACKWARD} × {flops:.3g} operations at {speeds.attention_backward / 1e12:.3g} TFLOP/s",
        ),
    ]


def _matrix_parts(work: Workload, speeds: Speeds, forwards: float, *, refill: bool) -> list[TimePart]:
    """Frozen weights have a gradient for their inputs only: one backward product, not two."""
    spec, n = work.spec, work.context
    units = forwards + 1
    weights = spec.layers * spec.linear_parameters
    # Each adapter matrix: the forward products, and in the backward pass one for its inputs and one for itself.
    flops = 2.0 * n * (units * weights + (units + 1) * work.lora_parameters)
    if refill:
        flops += 2.0 * n * spec.layers * 2 * spec.hidden_size * work.key_width
    head = 2 * 2.0 * n * spec.vocab_size * spec.hidden_size
    rate = f"at {speeds.matrix / 1e12:.3g} TFLOP/s"
    return [
        TimePart(name="linear layers", seconds=flops / speeds.matrix, formula=f"{flops:.3g} operations {rate}"),
        TimePart(name="the head", seconds=head / speeds.matrix, formula=f"{head:.3g} operations {rate}"),
    ]


def _unpacking_parts(work: Workload, weights: BaseWeights, speeds: Speeds, passes: float) -> list[TimePart]:
    """NF4 weights become matrices of the compute type each time they are used."""
    if weights != "nf4":
        return []
    moved = passes * work.spec.layers * work.spec.linear_parameters * (NF4_BITS / 8 + work.element)
    formula = f"{passes:,.0f} passes, {moved:.3g} B at {speeds.memory / 1e9:.3g} GB/s"
    return [TimePart(name="unpacking 4-bit weights", seconds=moved / speeds.memory, formula=formula)]


def _elementwise_part(work: Workload, speeds: Speeds) -> TimePart:
    values = 8 * work.spec.hidden_size + 6 * work.query_width + 7 * work.spec.intermediate_size
    moved = ELEMENTWISE_PASSES * values * work.element * work.spec.layers * work.context
    return TimePart(
        name="norms, activations and adapters' sums",
        seconds=moved / speeds.memory,
        formula=f"{moved:.3g} B at {speeds.memory / 1e9:.3g} GB/s",
    )


def _prefix_part(work: Workload, speeds: Speeds, tiles: int) -> TimePart:
    """Every tile's backward pass adds into the fp32 key and value gradients of all tiles before it."""
    earlier = work.spec.layers * work.context * (tiles - 1) / 2
    moved = earlier * 2 * work.key_width * (2 * 4 + work.element)
    return TimePart(
        name="sums of key and value gradients",
        seconds=moved / speeds.memory,
        formula=f"{earlier:.3g} keys met × 2 × {work.key_width:,} × {2 * 4 + work.element} B, "
        f"at {speeds.memory / 1e9:.3g} GB/s",
    )


def _launch_part(passes: float, speeds: Speeds) -> TimePart:
    return TimePart(
        name="starting kernels",
        seconds=passes * speeds.launch,
        formula=f"{passes:,.0f} passes of a tile through a layer × {speeds.launch * 1e3:g} ms",
    )


def _transfer_seconds(work: Workload, plan: StreamPlan, speeds: Speeds, tiles: int, again: float) -> float:
    """Seconds of all copies between the GPU and the homes, on their own."""
    spec, n, e = work.spec, work.context, work.element
    ratio = plan.activation_bits / 16
    # Hidden states: written and read going forward, read for the refill and the backward pass; the gradient stream is
    # read and written. A layer that is not stored is computed, written and read once more.
    hidden = spec.layers * n * spec.hidden_size * e * (2 * ratio + 2 * ratio + 2 + 2 * ratio * again)
    if plan.stash:
        hidden += 2 * spec.layers * n * (work.query_width * e + 4 * spec.heads)
    home = speeds.disk if plan.hidden_home == "disk" else speeds.link
    seconds = 0.0 if plan.hidden_home == "gpu" else hidden / home
    if plan.weights == "streamed":
        seconds += (3 + again) * spec.layers * spec.layer_parameters * e / speeds.link
    if plan.kv_home == "host":
        # Every tile meets all earlier keys: half of n each, on average. Backward also reads and writes fp32 gradients.
        pairs = spec.layers * n * (tiles - 1) / 2 * work.key_width
        reads = (1 if plan.stash else 2 + again) + 1
        seconds += pairs * 2 * (reads * e + 2 * 4) / speeds.link
    return seconds if work.on_gpu else 0.0
