"""Where the GPU time of a streamed step goes, by kernel, where it idles, and what the host does meanwhile.

python benchmarks/profile_step.py MODEL CONTEXT LAYERS PRECISION '{StreamPlan fields}' [TOKENS A ROW]
"""

from __future__ import annotations

import cProfile
import functools
import json
import pstats
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from engine.benchmarking.streaming import timed
from engine.config import LoraSection
from engine.models.adapter import attach_adapter
from engine.models.catalogue import find_model
from engine.models.fused import fuse_kernels
from engine.models.placement import choose_placement
from engine.models.random import random_model
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep

ROWS = 30
"""Of each table."""

DETAILED = 3
"""Kinds of gaps of which one is shown with all that overlaps it."""


def main() -> None:
    name, context, layers, precision, plan = sys.argv[1:6]
    spec, placement = find_model(name), choose_placement("cuda", precision)
    stream_plan = StreamPlan(**{"weights": "nf4" if precision == "nf4" else "resident", **json.loads(plan)})
    home = torch.device("cpu") if stream_plan.streams_weights else placement.device
    base = random_model(spec, placement, layers=int(layers), weights_device=home)
    fuse_kernels(base, placement.device)
    model = attach_adapter(base, LoraSection(), seed=0).train()
    tokens = torch.randint(0, spec.vocab_size, (int(context),))
    starts = range(0, int(context), int(sys.argv[6]) if len(sys.argv) > 6 else int(context))
    with StreamedStep(model, stream_plan, device=placement.device, timed=True) as step:
        step.run(tokens, document_starts=starts)
        run = functools.partial(step.run, tokens, document_starts=starts)
        print("step", timed(run, placement.device, 2), "s", flush=True)
        with cProfile.Profile() as host:
            run()
        pstats.Stats(host).sort_stats("tottime").print_stats(ROWS)
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            outcome = run()
        print(outcome.seconds)
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    print(f"all kernels and copies {total / 1e6:.3f} s")
    for row in [r for r in rows if r.self_device_time_total][:ROWS]:
        share = row.self_device_time_total / total
        print(f"{row.self_device_time_total / 1e3:9.1f} ms {share:6.1%} x{row.count:6} {row.key[:110]}")
    print_idle(profile)


def print_idle(profile: torch.profiler.profile) -> None:
    """Prints when no kernel ran although the step had not ended, between which two kernels, and what else ran then."""
    events = profile.profiler.kineto_results.events()
    on_gpu = [e for e in events if e.device_type() == torch._C._autograd.DeviceType.CUDA]
    kernels = sorted((e for e in on_gpu if not e.name().startswith("Mem")), key=lambda e: e.start_ns())
    others = [e for e in events if e.device_type() != torch._C._autograd.DeviceType.CUDA or e.name().startswith("Mem")]
    idle: dict[tuple[str, str], list[tuple[int, int]]] = {}
    end, before = kernels[0].start_ns(), ""
    for kernel in kernels:
        if kernel.start_ns() > end and before:
            idle.setdefault((before, kernel.name()[:50]), []).append((end, kernel.start_ns()))
        if kernel.start_ns() + kernel.duration_ns() > end:
            end, before = kernel.start_ns() + kernel.duration_ns(), kernel.name()[:50]
    span = (end - kernels[0].start_ns()) / 1e9
    total = sum(b - a for gaps in idle.values() for a, b in gaps) / 1e9
    print(f"first kernel to last {span:.3f} s, of which no kernel ran {total:.3f} s = {total / span:.1%}")
    for number, ((before, after), gaps) in enumerate(sorted(idle.items(), key=lambda item: -_sum(item[1]))[:ROWS]):
        print(f"{_sum(gaps) / 1e6:9.1f} ms x{len(gaps):6} {before} -> {after}")
        if number < DETAILED:
            began, ended = sorted(gaps, key=lambda gap: gap[0] - gap[1])[len(gaps) // 2]
            print(f"        the middle one, {(ended - began) / 1e6:.2f} ms:")
            overlapping = [e for e in others if e.start_ns() < ended and e.start_ns() + e.duration_ns() > began]
            for e in sorted(overlapping, key=lambda e: -e.duration_ns())[:12]:
                first, last = ((at - began) / 1e6 for at in (e.start_ns(), e.start_ns() + e.duration_ns()))
                print(f"          {first:8.2f} .. {last:8.2f} ms stream {e.device_resource_id()} {e.name()[:70]}")


def _sum(gaps: list[tuple[int, int]]) -> int:
    return sum(b - a for a, b in gaps)


if __name__ == "__main__":
    main()
