"""Where the GPU time of a streamed step goes, by kernel, and where it idles.

python benchmarks/profile_step.py MODEL CONTEXT LAYERS PRECISION '{StreamPlan fields}'
"""

from __future__ import annotations

import json
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


def main() -> None:
    name, context, layers, precision, plan = sys.argv[1:6]
    spec, placement = find_model(name), choose_placement("cuda", precision)
    stream_plan = StreamPlan(**{"weights": "nf4" if precision == "nf4" else "resident", **json.loads(plan)})
    home = torch.device("cpu") if stream_plan.weights == "streamed" else placement.device
    base = random_model(spec, placement, layers=int(layers), weights_device=home)
    fuse_kernels(base, placement.device)
    model = attach_adapter(base, LoraSection(), seed=0).train()
    tokens = torch.randint(0, spec.vocab_size, (int(context),))
    with StreamedStep(model, stream_plan, device=placement.device) as step:
        step.run(tokens)
        print("step", timed(lambda: step.run(tokens), placement.device, 2), "s", flush=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            outcome = step.run(tokens)
        print(outcome.seconds)
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    print(f"all kernels and copies {total / 1e6:.3f} s")
    for row in rows[:ROWS]:
        share = row.self_device_time_total / total
        print(f"{row.self_device_time_total / 1e3:9.1f} ms {share:6.1%} x{row.count:6} {row.key[:110]}")
    print_idle(profile)


def print_idle(profile: torch.profiler.profile) -> None:
    """Prints when no kernel ran although the step had not ended, and between which two kernels."""
    events = profile.profiler.kineto_results.events()
    kernels = [e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA and "Mem" not in e.name()]
    kernels.sort(key=lambda e: e.start_ns())
    idle: dict[tuple[str, str], list[int]] = {}
    end, before = kernels[0].start_ns(), ""
    for kernel in kernels:
        if kernel.start_ns() > end and before:
            idle.setdefault((before, kernel.name()[:50]), []).append(kernel.start_ns() - end)
        if kernel.start_ns() + kernel.duration_ns() > end:
            end, before = kernel.start_ns() + kernel.duration_ns(), kernel.name()[:50]
    span = (end - kernels[0].start_ns()) / 1e9
    total = sum(sum(gaps) for gaps in idle.values()) / 1e9
    print(f"first kernel to last {span:.3f} s, of which no kernel ran {total:.3f} s = {total / span:.1%}")
    for (before, after), gaps in sorted(idle.items(), key=lambda item: -sum(item[1]))[:ROWS]:
        print(f"{sum(gaps) / 1e6:9.1f} ms x{len(gaps):6} longest {max(gaps) / 1e6:6.2f}  {before} -> {after}")


if __name__ == "__main__":
    main()
