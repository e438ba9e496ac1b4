"""Measures streamed steps of a hybrid model (Gated DeltaNet beside attention) on one GPU, with random weights.

    python benchmarks/hybrid_gpu.py OUT.json [--only NAME ...] [--scale 0.8b|2b|4b]

Every case has a time limit and a process of its own. Results are written after each, and one table last. A case's
gradient norm does not depend on its tiles, so that cases of one context check each other. "128k-before" is the step
without the kernels of engine.models.recurrent_kernels and with FlashAttention-2. "rule" measures the gated delta rule
alone and the configurations of its kernels. "profile" adds the GPU time of one more step by kind of work.

Seconds on one H200, a start of Python and the model included: rule 90, 128k-before 75, 128k-16k 70, 128k-8k 60,
512k-streamed 160, 1m-streamed 420.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.hybrid_rule import measure_rule

SHAPES = {
    "0.8b": {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24},
    "2b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24},
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9216,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "linear_num_value_heads": 32,
    },
}
COMMON = {
    "vocab_size": 248320,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4194304,
}

_SHORT = {"context": 131072, "repeats": 2, "limit": 150}
CASES = {
    "rule": {"rule": True, "tokens": 16384, "limit": 150},
    "128k-before": {
        **_SHORT,
        "before": True,
        "profile": True,
        "plan": {"tile": 16384, "key_block": 16384, "loss_piece": 1024, "attention": "flash"},
    },
    "128k-16k": {**_SHORT, "profile": True, "plan": {"tile": 16384, "key_block": 16384, "loss_piece": 1024}},
    "128k-8k": {**_SHORT, "plan": {"tile": 8192, "key_block": 8192, "loss_piece": 1024}},
    "128k-4k": {**_SHORT, "repeats": 1, "plan": {"tile": 4096, "key_block": 8192, "loss_piece": 512}},
    "512k-streamed": {
        "context": 524288,
        "cap": 7.25,
        "limit": 160,
        "plan": {"tile": 8192, "key_block": 8192, "loss_piece": 512, "weights": "streamed"},
    },
    "1m-streamed": {
        "context": 1048576,
        "cap": 11,
        "limit": 560,
        "plan": {"tile": 8192, "key_block": 8192, "loss_piece": 512, "weights": "streamed", "checkpoint_every": 2},
    },
    "512k-nf4": {
        "context": 524288,
        "cap": 7.25,
        "limit": 160,
        "precision": "nf4",
        "plan": {"tile": 8192, "key_block": 8192, "loss_piece": 512, "weights": "nf4"},
    },
    "512k-4k-host": {
        "context": 524288,
        "cap": 7.25,
        "limit": 200,
        "plan": {"tile": 4096, "key_block": 8192, "loss_piece": 256, "weights": "streamed", "kv_home": "host"},
    },
}
DEFAULT = ["rule", "128k-before", "128k-16k", "128k-8k", "512k-streamed"]

KINDS = {
    "rule, forward": "fwd_kernel_h|chunk_fwd_kernel_o|kkt|solve_tril|recompute_w_u|l2norm_fwd|cumsum_scalar|fwd_intra",
    "rule, backward": "chunk_bwd|prepare_wy|l2norm_bwd|_chunk_kernel|bwd_kernel_dhu",
    "convolution": "conv",
    "attention": "flash|fmha|sdpa|softmax_lse|dot_do_o",
    "cross-entropy": "cross_entropy",
    "norms": "layer_norm|rms_norm",
    "products": "gemm|cutlass|nvjet|splitk|cublas|sm90_xmma",
    "copies": "memcpy|memset",
}
"""Kind of work by a kernel's name, the first that fits; all others are elementwise work, layout changes and sums."""


def run(case: dict, pipe) -> None:
    try:
        pipe.send(measure_rule(case) if "rule" in case else measure(case))
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(limit=8)})


def measure(case: dict) -> dict:
    """Runs one warm-up of three tiles and then the steps of a case, in this process."""
    import psutil
    import torch
    from transformers import AutoConfig

    from engine.benchmarking.machine import describe_machine
    from engine.benchmarking.streaming import limit_memory, reset_peak, synchronize
    from engine.config import LoraSection
    from engine.models import families, recurrent_kernels
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model_of
    from engine.plan.stream_plan import StreamPlan
    from engine.streaming.step import StreamedStep

    if families.refusal("qwen3_5_text", "streamed") is not None:
        families.admit("qwen3_5_text", families.Family())
    placement = choose_placement(case.get("device", "cuda"), case.get("precision", "bf16"))
    device, plan = placement.device, StreamPlan(**case["plan"])
    limit_memory(device, case.get("cap"))
    config = AutoConfig.for_model("qwen3_5_text", **{**COMMON, **case["shape"]})
    torch.manual_seed(0)
    base = random_model_of(config, placement, torch.device("cpu") if plan.weights == "streamed" else device)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                parameter.copy_(torch.linspace(-2.0, 0.5, parameter.numel()))  # decays as trained models have them
    if case.get("before"):
        only_torch(recurrent_kernels)
    else:
        fuse_kernels(base, device)
    model = attach_adapter(base, LoraSection(rank=16), seed=0).train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            parameter.data = (0.01 * torch.randn(parameter.shape, generator=generator)).to(parameter)
    context = case["context"]
    tokens = torch.randint(0, config.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
    rss = psutil.Process().memory_info().rss
    runs, began_all = [], time.perf_counter()
    with StreamedStep(model, plan, device=device, spill_directory=Path("/tmp"), timed=True) as step:
        step.run(tokens[: min(context, 3 * plan.tile)])
        synchronize(device)
        warm_up = time.perf_counter() - began_all
        reset_peak(device)
        for _ in range(case.get("repeats", 1)):
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            outcome = step.run(tokens)
            synchronize(device)
            runs.append({"total": time.perf_counter() - began, **outcome.seconds})
        norm = torch.stack([p.grad.float().norm() for p in trainable(model).values() if p.grad is not None]).norm()
        found = {
            "seconds": min(runs, key=lambda run: run["total"]),
            "first_seconds": runs[0],
            "warm_up_seconds": warm_up,
            "loss": outcome.loss_sum / outcome.predicted,
            "gradient_norm": float(norm),
            "backend": step.backend_name,
            "fla": recurrent_kernels.prepare_kernels(),
            "kernels": recurrent_kernels.kernel_report(),
            "host_rss_bytes": psutil.Process().memory_info().rss,
            "host_grown_bytes": psutil.Process().memory_info().rss - rss,
            "machine": describe_machine(device),
        }
        if device.type == "cuda":
            found["gpu_peak_allocated"] = torch.cuda.max_memory_allocated(device)
            found["gpu_peak_reserved"] = torch.cuda.max_memory_reserved(device)
        if case.get("profile"):
            found["by_kind"] = profiled(lambda: step.run(tokens), device)
    if not math.isfinite(found["loss"]) or not math.isfinite(found["gradient_norm"]):
        raise FloatingPointError(f"loss {found['loss']}, gradient norm {found['gradient_norm']}")
    try:
        return found | predicted(config, case, device)
    except Exception as error:  # the measurement counts without it
        nothing = {"gpu": 0, "host": 0, "seconds": 0.0, "error": f"{type(error).__name__}: {error}"[:500]}
        return found | {"predicted": nothing}


def only_torch(kernels) -> None:
    """Leaves transformers its convolution and norms, and the gradients inside chunks torch."""
    own = kernels._replace
    kernels._replace = lambda owner, name, make: own(owner, name, make) if "delta_rule" in name else None
    kernels._kernel_is_right = lambda *_: False


def profiled(call, device) -> dict:
    """Returns the seconds of GPU time of a call by kind of work, and the ten longest kernels of no other kind."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    kinds = dict.fromkeys([*KINDS, "elementwise, layouts, sums"], 0.0)
    rest = []
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e6
        kind = kind_of(event.key)
        kinds[kind] += seconds
        if kind.startswith("elementwise"):
            rest.append((seconds, event.count, event.key[:160]))
    return {"seconds": kinds, "longest": sorted(rest, reverse=True)[:12]}


def kind_of(name: str) -> str:
    for kind, pattern in KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "elementwise, layouts, sums"


def predicted(config, case: dict, device) -> dict:
    """Returns what the planner says of a case on the machine here: GPU and host bytes, and seconds by part.

    GPU bytes are those that torch's allocator counts, without the process's context.
    """
    import dataclasses

    from engine.config import LoraSection, TrainingSection
    from engine.hardware.inventory import take_inventory
    from engine.models.spec import as_spec
    from engine.plan.ledger_lines import NOT_ALLOCATED
    from engine.plan.memory import streamed_ledger
    from engine.plan.request import PlanRequest, workload_of
    from engine.plan.speeds import attention_efficiency, speeds_of
    from engine.plan.stream_plan import StreamPlan
    from engine.plan.time import streamed_time, total_seconds
    from engine.verify.observed_shape import observed_shape

    spec = as_spec(observed_shape(config, adapts_mlp=True), name="hybrid", family=config.model_type)
    plan, machine = StreamPlan(**case["plan"]), take_inventory(Path("/tmp"))
    if device.type != "cuda":
        machine = dataclasses.replace(machine, gpus=())
    request = PlanRequest(
        machine=machine,
        spec=spec,
        compute_type="bf16",
        weights=("nf4" if case.get("precision") == "nf4" else "resident",),
        lora=LoraSection(rank=16),
        training=TrainingSection(),
    )
    work = workload_of(request, case["context"])
    if case.get("before"):
        work = dataclasses.replace(work, recurrent_kernels=False)
    if plan.attention != "auto" and machine.gpus:
        efficiency = attention_efficiency(machine.gpus[0], spec.head_dim, plan.attention)
        work = dataclasses.replace(work, backend=plan.attention, attention_efficiency=efficiency)
    parts = streamed_time(work, plan, speeds_of(machine, work))
    lines = streamed_ledger(work, plan).parts
    return {
        "predicted": {
            "gpu": sum(line.bytes for line in lines if line.where == "gpu" and line.name not in NOT_ALLOCATED),
            "host": sum(line.bytes for line in lines if line.where == "host"),
            "seconds": total_seconds(parts),
            "parts": {part.name: part.seconds for part in parts},
            "lines": {f"{line.where}: {line.name}": line.bytes for line in lines},
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=DEFAULT)
    parser.add_argument("--scale", choices=SHAPES, default="2b")
    parser.add_argument("--shape", type=json.loads, default={}, help="other values of the configuration, as JSON")
    parser.add_argument("--case", type=json.loads, default={}, help="other values of every case, as JSON")
    args = parser.parse_args()
    results = {}
    for name in args.only:
        shape = {} if name == "rule" else {"shape": {**SHAPES[args.scale], **args.shape}}
        case = {**CASES[name], **args.case, **shape}
        began = time.perf_counter()
        result = within_limit(case)
        results[name] = {"case": case, **result, "wall": time.perf_counter() - began}
        print(line(name, results[name]), flush=True)
        args.out.write_text(json.dumps(results, indent=1))
    print(table(results))


def within_limit(case: dict) -> dict:
    """Runs a case in a process of its own, which is killed when its time is over."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=run, args=(case, sender))
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(case["limit"]) else {"error": f"more than {case['limit']} s"}
    except EOFError:
        result = {"error": "the process died"}
    if process.is_alive():
        process.join(15)
        process.kill()
    process.join()
    return result


def line(name: str, result: dict) -> str:
    if "error" in result:
        return f"{name}\n    ERROR {result['error']}\n{result.get('trace', '')}"
    if "seconds" not in result:
        times = {
            kind: {part: round(ms, 2) for part, ms in result[kind].items() if part in ("forward", "both")}
            for kind in ("torch", "kernel")
        }
        longest = "\n".join(f"    {ms:8.3f} ms {count:3} {key}" for ms, count, key in result["kernel"]["by_kernel"])
        return f"{name}\n    {times} {result['kernels']}\n{longest}\n    {result['states']}"
    s = result["seconds"]
    text = f"{name}\n    {s['total']:.2f} s (forward {s['forward']:.2f}, loss {s['loss']:.2f}, "
    text += f"backward {s['backward']:.2f}; first {result['first_seconds']['total']:.2f}, "
    text += f"warm-up {result['warm_up_seconds']:.0f}), host {result['host_rss_bytes'] / 2**30:.1f} GiB, "
    if "gpu_peak_allocated" in result:
        text += f"peak {result['gpu_peak_allocated'] / 2**30:.2f} GiB allocated, "
        text += f"{result['gpu_peak_reserved'] / 2**30:.2f} reserved, "
    text += f"{result['backend']}, fla {result['fla']}, loss {result['loss']:.4f}, "
    text += f"gradient norm {result['gradient_norm']:.6f}, wall {result['wall']:.0f}"
    text += f"\n    kernels {result['kernels']}"
    if "by_kind" in result:
        parts = ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in result["by_kind"]["seconds"].items())
        text += f"\n    GPU seconds by kind: {parts}"
        text += "".join(
            f"\n    {seconds:7.3f} s {count:6} {key}" for seconds, count, key in result["by_kind"]["longest"]
        )
    return text


def table(results: dict) -> str:
    """Returns the steps and what the planner said of them."""
    rows = ["| case | a step | planned | GPU peak | planned | host | planned | kernels right |", "|---" * 8 + "|"]
    for name, result in results.items():
        if "seconds" not in result:
            continue
        said, gib = result["predicted"], 2**30
        right = f"{sum(result['kernels'].values())} of {len(result['kernels'])}"
        rows.append(
            f"| {name} | {result['seconds']['total']:.1f} s | {said['seconds']:.1f} s "
            f"| {result.get('gpu_peak_allocated', 0) / gib:.2f} | {said['gpu'] / gib:.2f} GiB "
            f"| {result['host_rss_bytes'] / gib:.1f} | {said['host'] / gib:.1f} GiB | {right} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
