"""Measures a streamed step: seconds by stage, GPU peak, host memory, and the floor to compare with."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn

from engine.attention.backend import AttentionBackend
from engine.attention.select import backend_by_name
from engine.benchmarking.machine import describe_machine
from engine.config import LoraSection
from engine.models.adapter import attach_adapter
from engine.models.fused import fuse_kernels
from engine.models.grouped_products import Groups, grouped_product
from engine.models.layer_input_table import look_up_on_host
from engine.models.placement import Placement
from engine.models.random import random_model
from engine.models.spec import ModelSpec
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNLIMITED = 1.0


def measure_step(
    spec: ModelSpec,
    context: int,
    plan: StreamPlan,
    placement: Placement,
    *,
    layers: int | None = None,
    vram_cap: float | None = None,
    repeats: int = 1,
    rank: int = 16,
    fused: bool = True,
    spill_directory: Path | None = None,
    lora: LoraSection | None = None,
    base: PreTrainedModel | None = None,
    table_on_host: bool = False,
) -> dict[str, Any]:
    """Runs full exact steps with a LoRA adapter.

    Args:
        spec: Shapes; weights are random.
        context: Tokens per window.
        plan: Layout of the step.
        placement: Device and storage of the weights.
        layers: Number of decoder layers, if not all; every layer does the same work.
        vram_cap: GiB that torch's allocator may take; more raises.
        repeats: Number of steps; reports the fastest and the first (which allocates pinned memory and plans kernels).
        rank: Rank of the adapter.
        fused: Whether to use fused kernels where available.
        spill_directory: Folder of the files of homes on disk.
        lora: The adapter; None for `rank` on all linear layers.
        base: The model without an adapter, if it is there already; it has none afterwards.
        table_on_host: Whether the table of single layers' inputs stays on the host, if the model has one.

    Raises:
        EliteError: OUT_OF_MEMORY.
    """
    device, lora = placement.device, lora or LoraSection(rank=rank)
    limit_memory(device, vram_cap)
    rss_before = psutil.Process().memory_info().rss
    weights_device = torch.device("cpu") if plan.streams_weights or table_on_host else device
    torch.manual_seed(0)  # the same weights for every layout
    began = time.perf_counter()
    if base is None:
        base = random_model(spec, placement, layers=layers, weights_device=weights_device)
        synchronize(device)
    if table_on_host:
        look_up_on_host(base, device, rest_on_host=plan.streams_weights)
    built = time.perf_counter() - began
    fused = fused and fuse_kernels(base, device)
    model = attach_adapter(base, lora, seed=0).train()
    tokens = torch.randint(0, spec.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
    with StreamedStep(model, plan, device=device, spill_directory=spill_directory, timed=True) as step:
        runs, loss = _timed_steps(step, model, tokens, device, repeats)
        measured = {
            "kind": "streamed step",
            "model": spec.name,
            "context": context,
            "layers": layers or spec.layers,
            "all_layers": spec.layers,
            "precision": placement.precision,
            "rank": lora.rank,
            "targets": lora.targets,
            "fused_kernels": fused,
            "plan": dataclasses.asdict(plan),
            "backend": step.backend_name,
            "vram_cap_gib": vram_cap,
            "seconds": min(runs, key=lambda run: run["total"]),
            "first_seconds": runs[0],
            "build_seconds": built,
            "loss": loss,
            "gradient_norm": gradient_norm(model),
            "host_rss_bytes": psutil.Process().memory_info().rss - rss_before,
            **describe_machine(device),
        }
    if device.type == "cuda":
        measured |= {
            "gpu_peak_allocated": torch.cuda.max_memory_allocated(device),
            "gpu_peak_reserved": torch.cuda.max_memory_reserved(device),
        }
    model.unload()
    gc.collect()  # an adapter refers to what computes it, and that to the adapter
    return measured


def _timed_steps(
    step: StreamedStep, model: nn.Module, tokens: Tensor, device: torch.device, repeats: int
) -> tuple[list[dict[str, float]], float]:
    """Runs a step several times; returns the seconds of each in total and by stage, and the mean loss of a token."""
    runs = []
    reset_peak(device)
    for _ in range(repeats):
        model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        outcome = step.run(tokens)
        synchronize(device)
        runs.append({"total": time.perf_counter() - began, **outcome.seconds})
        if not math.isfinite(outcome.loss_sum):
            raise FloatingPointError(f"the loss of the measured step is {outcome.loss_sum}")
    return runs, outcome.loss_sum / outcome.predicted


def gradient_norm(model: nn.Module) -> float:
    """Returns the Euclidean norm of all gradients, which tells two layouts' steps apart."""
    norms = [p.grad.double().norm().cpu() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def measure_floors(spec: ModelSpec, context: int, measured: dict[str, Any], placement: Placement) -> dict[str, float]:
    """Returns the seconds of attention alone, and of matrix products alone, for the layers of a measured step."""
    device = placement.device
    limit_memory(device, None)
    backend = backend_by_name(measured["backend"], device, placement.dtype, spec.heads, spec.kv_heads, spec.head_dim)
    layers = measured["layers"]
    return {
        "attention_floor": attention_floor(spec, context, backend, device, placement.dtype) * layers,
        "matrix_floor": matrix_floor(spec, context, device, placement.dtype) * layers,
    }


def attention_floor(
    spec: ModelSpec,
    context: int,
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    *,
    block: int = 131_072,
) -> float:
    """Returns the seconds of one layer's causal attention, forward and backward, and nothing else.

    Inputs up to `block` tokens take a single call. Longer ones no longer fit, and are extrapolated as the square, since
    the work is quadratic.
    """
    length = min(context, block)
    q, grad = (
        torch.randn((1, length, spec.heads, spec.head_dim), dtype=dtype, device=device).transpose(1, 2)
        for _ in range(2)
    )
    k, v = (
        torch.randn((1, length, spec.kv_heads, spec.head_dim), dtype=dtype, device=device).transpose(1, 2)
        for _ in range(2)
    )
    scale = spec.head_dim**-0.5

    def once() -> None:
        out, logsumexp = backend.forward(q, k, v, causal=True, scale=scale)
        backend.backward(grad, q, k, v, out, logsumexp, causal=True, scale=scale)

    return timed(once, device) * (context / length) ** 2


def matrix_floor(
    spec: ModelSpec, context: int, device: torch.device, dtype: torch.dtype, *, tokens: int = 8192
) -> float:
    """Returns the seconds of one layer's matrix products: forward, recompute, and the gradient of the input."""
    total, tokens = 0.0, min(tokens, context)
    for linear in spec.linears:
        x = torch.randn((tokens, linear.inputs), dtype=dtype, device=device)
        w = torch.randn((linear.outputs, linear.inputs), dtype=dtype, device=device)
        g = torch.randn((tokens, linear.outputs), dtype=dtype, device=device)
        total += 2 * timed(lambda x=x, w=w: x @ w.T, device) + timed(lambda g=g, w=w: g @ w, device)
    if spec.sparse_layers:
        total += _experts_floor(spec, tokens, device, dtype)
    return total * context / tokens


def _experts_floor(spec: ModelSpec, tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the seconds of the same products of a layer's experts, every expert chosen as often as the others."""
    rows, experts = tokens * spec.experts_per_token, spec.experts
    groups = Groups((torch.arange(1, experts + 1, device=device) * rows // experts).to(torch.int32))
    total = 0.0
    for inputs, outputs in ((spec.hidden_size, 2 * spec.expert_size), (spec.expert_size, spec.hidden_size)):
        x = torch.randn((rows, inputs), dtype=dtype, device=device)
        g = torch.randn((rows, outputs), dtype=dtype, device=device)
        w = torch.randn((experts, outputs, inputs), dtype=dtype, device=device)
        total += 2 * timed(lambda x=x, w=w: grouped_product(x, w.transpose(1, 2), groups), device)
        total += timed(lambda g=g, w=w: grouped_product(g, w, groups), device)
    return total


def timed(work: Any, device: torch.device, repeats: int = 3) -> float:
    """Returns the fastest time of `work` in seconds, after one warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Resets the device's peak memory statistics."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def limit_memory(device: torch.device, gib: float | None) -> None:
    """Emulates a smaller GPU: torch's allocator refuses more than `gib` GiB."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(_UNLIMITED if gib is None else gib * 2**30 / total, device)
