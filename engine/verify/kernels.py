"""Proofs of compiled and fused kernels and of the allocator's settings, each in a process of its own.

Fused kernels replace functions of a whole model family, and allocator settings apply to a whole process.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from engine.config import from_mapping
from engine.hardware.tuning import tune_memory
from engine.models.compiled import compile_layers
from engine.models.fused import fuse_kernels
from engine.quantities import format_timing
from engine.steps.whole_step import WholeSequenceStep
from engine.verify.measure import mib, relative_error
from engine.verify.proof import Bench, ProofFailedError, UnavailableError, demand, need_gpu, need_library, quieten
from engine.verify.small import Unbothered, adapted, gradients, random_tokens, small_model


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of this module in a fresh process and returns its result."""
    with get_context("spawn").Pool(1, initializer=quieten) as pool:
        return pool.apply(function, arguments)


# --- fused kernels -------------------------------------------------------------------------------------------


def fused_kernels(bench: Bench) -> str:
    """Output and gradient match the family's own code, in less time."""
    need_gpu(bench, "the kernels are written for GPUs")
    need_library("liger_kernel", "gpu")
    need_library("triton", "gpu")
    plain, fused = (_apart(_gpu_steps, fuse) for fuse in (False, True))
    demand(fused["fused"], "nothing was fused")
    error = _bf16_error(fused["gradients"], plain["gradients"])
    demand(error < 0.1, f"the gradient differs by {error:.1%}")
    demand(
        fused["seconds"] < plain["seconds"], f"{format_timing(plain['seconds'])} → {format_timing(fused['seconds'])}"
    )
    return (
        f"gradient within {error:.1%} (bf16); forward and backward of 3 layers at 8,192 tokens "
        f"{format_timing(plain['seconds'])} → {format_timing(fused['seconds'])}"
    )


def _gpu_steps(fuse: bool) -> dict[str, Any]:
    """Times decoder layers alone, forward and backward without an adapter: the code that the kernels replace."""
    device = torch.device("cuda", 0)
    shape: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    }
    base = small_model(device=device, initializer_range=0.02, **shape).to(torch.bfloat16)
    fused = fuse and fuse_kernels(base, device)
    decoder = base.get_decoder()
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(1, 8192, 1024, generator=generator).to(device, torch.bfloat16).requires_grad_()
    aim = torch.randn(1, 8192, 1024, generator=generator).to(device, torch.bfloat16)

    def once() -> Tensor:
        output = decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return torch.autograd.grad(output, embedded, aim)[0]

    found = once()
    return {"fused": fused, "seconds": _fastest(once, device, repeats=10), "gradients": {"input": found.float().cpu()}}


def _bf16_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Returns the difference of all gradients together, relative to their norm."""
    difference = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return float((difference / sum(float(g.square().sum()) for g in expected.values())) ** 0.5)


def _fastest(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the seconds of the fastest call."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


# --- torch.compile -------------------------------------------------------------------------------------------


def torch_compile(bench: Bench) -> str:
    """Compiled layers give the same loss and gradient; reports the time before and after warm-up."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or not _compiles(compiler):
        raise UnavailableError(
            "torch.compile builds its kernels with a C compiler and Python's headers, which are not both here; "
            "install gcc and python3-dev"
        )
    plain, compiled = (_apart(_compiled_steps, bench.device.type, on) for on in (False, True))
    error = relative_error(compiled["gradients"], plain["gradients"])
    demand(error < 1e-3, f"the gradient differs by {error:.1e}")
    demand(compiled["frames"] >= 1, "no layer was compiled")
    return (
        f"{compiled['frames']} compiled region, gradient within {error:.1e}; "
        f"first step {format_timing(compiled['first'])}, "
        f"then {format_timing(plain['later'])} → {format_timing(compiled['later'])} a step"
    )


def _compiles(compiler: str) -> bool:
    source = b"#include <stdlib.h>\n#include <Python.h>\n"
    headers = f"-I{sysconfig.get_paths()['include']}"
    done = subprocess.run(
        [compiler, headers, "-x", "c", "-fsyntax-only", "-"], input=source, capture_output=True, check=False
    )
    return done.returncode == 0


def _compiled_steps(device_type: str, on: bool) -> dict[str, Any]:
    device = torch.device(device_type)
    # Adapt one projection only, since every kernel takes the compiler seconds.
    model = adapted(small_model(device=device, num_hidden_layers=1), from_mapping({"lora": {"targets": ["q_proj"]}}))
    if on:
        compile_layers(model.get_base_model())
    step = WholeSequenceStep(model, recompute=False)
    tokens = random_tokens(513)
    began = time.perf_counter()
    step.run([tokens], 1 / 512, Unbothered())
    first = time.perf_counter() - began
    found = gradients(model)
    later = _fastest(lambda: step.run([tokens], 1 / 512, Unbothered()), device, repeats=5)
    frames = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) if on else 0
    return {"gradients": {n: g.cpu() for n, g in found.items()}, "first": first, "later": later, "frames": frames}


# --- memory tuning -------------------------------------------------------------------------------------------


def memory_tuning(bench: Bench) -> str:
    """Windows of growing length leave less reserved but unused memory."""
    need_gpu(bench, "it sets up a GPU's memory")
    untuned, tuned = (_apart(_unused_bytes, on) for on in (False, True))
    if not tuned["tf32"]:
        raise ProofFailedError("TF32 products were not allowed")
    demand(tuned["unused"] < 0.7 * untuned["unused"], f"unused {mib(untuned['unused'])} → {mib(tuned['unused'])}")
    return f"reserved and unused after 40 growing blocks {mib(untuned['unused'])} → {mib(tuned['unused'])}; TF32 on"


def _unused_bytes(on: bool) -> dict[str, Any]:
    device = torch.device("cuda", 0)
    if on:
        tune_memory(device)
    kept = []
    for size in range(40):
        # Each window's buffers are a little larger than the last one's, and a small tensor outlives them.
        large = torch.empty((21 + size) * 2**20, dtype=torch.uint8, device=device)
        kept.append(torch.empty(3 * 2**20, dtype=torch.uint8, device=device))
        del large
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return {"unused": unused, "tf32": torch.get_float32_matmul_precision() == "high"}
