"""Measures streamed steps of a hybrid model (Gated DeltaNet beside attention) on one GPU, with random weights.

    python benchmarks/hybrid_gpu.py OUT.json [--only NAME ...] [--scale 0.8b|2b|4b]

Every case has a time limit and a process of its own. Results are written after each. A case's gradient norm does not
depend on its tiles, so that cases of one context check each other.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

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

_SHORT = {"context": 131072, "repeats": 2, "limit": 100}
CASES = {
    "128k-16k": {**_SHORT, "plan": {"tile": 16384, "key_block": 16384, "loss_piece": 1024}},
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
        "limit": 400,
        "plan": {"tile": 8192, "key_block": 8192, "loss_piece": 512, "weights": "streamed"},
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
DEFAULT = list(CASES)[:5]
"""All but the last two."""


def run(case: dict, pipe) -> None:
    try:
        pipe.send(measure(case))
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
    from engine.models import families
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.delta_rule import prepare_kernels
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
            "fla": prepare_kernels(),
            "host_rss_bytes": psutil.Process().memory_info().rss,
            "host_grown_bytes": psutil.Process().memory_info().rss - rss,
            "machine": describe_machine(device),
        }
    if not math.isfinite(found["loss"]) or not math.isfinite(found["gradient_norm"]):
        raise FloatingPointError(f"loss {found['loss']}, gradient norm {found['gradient_norm']}")
    if device.type == "cuda":
        found["gpu_peak_allocated"] = torch.cuda.max_memory_allocated(device)
        found["gpu_peak_reserved"] = torch.cuda.max_memory_reserved(device)
    return found


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
        case = {**CASES[name], **args.case, "shape": {**SHAPES[args.scale], **args.shape}}
        began = time.perf_counter()
        result = within_limit(case)
        results[name] = {"case": case, **result, "wall": time.perf_counter() - began}
        print(line(name, results[name]), flush=True)
        args.out.write_text(json.dumps(results, indent=1))


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
    s = result["seconds"]
    text = f"{name}\n    {s['total']:.2f} s (forward {s['forward']:.2f}, loss {s['loss']:.2f}, "
    text += f"backward {s['backward']:.2f}; first {result['first_seconds']['total']:.2f}, "
    text += f"warm-up {result['warm_up_seconds']:.0f}), host {result['host_rss_bytes'] / 2**30:.1f} GiB, "
    if "gpu_peak_allocated" in result:
        text += f"peak {result['gpu_peak_allocated'] / 2**30:.2f} GiB allocated, "
        text += f"{result['gpu_peak_reserved'] / 2**30:.2f} reserved, "
    text += f"{result['backend']}, fla {result['fla']}, loss {result['loss']:.4f}, "
    return text + f"gradient norm {result['gradient_norm']:.6f}, wall {result['wall']:.0f}"


if __name__ == "__main__":
    main()
