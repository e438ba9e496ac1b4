"""Times the gated delta rule of benchmarks/hybrid_gpu.py alone, and other configurations of its kernels."""

from __future__ import annotations

import math
import time


def measure_rule(case: dict) -> dict:
    """Times the gated delta rule alone, forward and backward, with either kernel inside chunks."""
    import torch

    from engine.models import recurrent_kernels
    from engine.models.checked_kernel import Example

    device = torch.device(case.get("device", "cuda"))
    if not recurrent_kernels.prepare_kernels():
        raise RuntimeError("the package fla and a GPU are needed")
    from fla.ops.common import chunk_delta_h
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    tokens, heads, width = case["tokens"], case.get("heads", 16), case.get("width", 128)
    draw = Example.generator(device)
    q, k, v, do = (draw(1, tokens, heads, width).bfloat16() for _ in range(4))
    g, beta = -torch.nn.functional.softplus(draw(1, tokens, heads)), draw(1, tokens, heads).sigmoid().bfloat16()
    leaves = [x.requires_grad_() for x in (q, k, v, g, beta, draw(1, heads, width, width))]

    def rule():
        return chunk_gated_delta_rule(
            *leaves[:3],
            g=leaves[3],
            beta=leaves[4],
            initial_state=leaves[5],
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )

    def gradients():
        out, state = rule()
        return torch.autograd.grad([out, state], leaves, [do, torch.ones_like(state)])

    found: dict = {}
    own = recurrent_kernels._kernel_is_right
    for name, is_right in (("torch", lambda *_: False), ("kernel", own)):
        recurrent_kernels._kernel_is_right = is_right
        result = gradients()
        found[name] = {"forward": timed(rule, device), "both": timed(gradients, device)}
        found[name]["norms"] = [float(x.float().norm()) for x in result]
        found[name]["by_kernel"] = longest_kernels(gradients, device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        gradients()
        found[name]["bytes"] = torch.cuda.max_memory_allocated(device) - before
    found["states"] = configurations(chunk_delta_h, gradients, device)
    found["kernels"] = recurrent_kernels.kernel_report()
    return found


def longest_kernels(call, device) -> list:
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize(device)
    events = [(e.self_device_time_total / 1e3, e.count, e.key[:80]) for e in profiler.key_averages()]
    return sorted(events, reverse=True)[:16]


def configurations(module, gradients, device) -> dict:
    """Times the two kernels that carry the state from chunk to chunk with other configurations than the first."""
    import triton
    from triton.runtime.autotuner import Autotuner

    found = {}
    for name in ("chunk_gated_delta_rule_fwd_kernel_h_blockdim64", "chunk_gated_delta_rule_bwd_kernel_dhu_blockdim64"):
        kernel = getattr(module, name)
        while not isinstance(kernel, Autotuner):
            kernel = kernel.fn
        first = kernel.configs
        for block, warps, stages in (
            (32, 4, 2),
            (32, 4, 3),
            (32, 4, 4),
            (32, 2, 2),
            (32, 2, 3),
            (64, 4, 2),
            (64, 4, 3),
        ):
            kernel.configs = [triton.Config({"BV": block}, num_warps=warps, num_stages=stages)]
            kernel.cache.clear()
            try:
                gradients()
                times = [ms for ms, _, key in longest_kernels(gradients, device) if key.startswith(name[:40])]
                found[f"{name[23:26]} BV {block}, {warps} warps, {stages} stages"] = times
            except Exception as error:
                found[f"{name[23:26]} BV {block}, {warps} warps, {stages} stages"] = f"{type(error).__name__}: {error}"[
                    :200
                ]
        kernel.configs = first
        kernel.cache.clear()
    return found


def timed(call, device, repeats: int = 5) -> float:
    """Returns the milliseconds of the fastest of some calls."""
    import torch

    call()
    best = math.inf
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 1e3 * best
