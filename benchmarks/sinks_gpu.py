"""Compares sinks and latent attention on CUDA kernels with fp64 over whole sequences, and measures what latents cost.

    python benchmarks/sinks_gpu.py OUT.json [--device cpu --small] [--only NAME ...]

Parity: the loss and every gradient of a streamed step in fp32 and bf16, against plain transformers in fp64, beside
plain transformers in bf16. In bf16 both should be equally far. Cost: layers of DeepSeek-V2-Lite's attention over a long
context, with latents stored and with keys and values stored. Results are written after each case.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

WORDS = 211
STARTS = (0, 250, 1000)
COMMON = {
    "vocab_size": WORDS,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 131072,
    "initializer_range": 0.06,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_key_value_heads": 8,
}
# Every expert is chosen: in 16 bits a router would choose others, and nothing could be compared.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"head_dim": 64, "sliding_window": 200, "num_local_experts": 2, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 3},
    "minicpm3": {**LATENT, "q_lora_rank": 96, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
}
PLANS = {
    "stash": {"tile": 300, "key_block": 512},
    "again, host keys": {"tile": 300, "key_block": 512, "stash": False, "kv_home": "host"},
}


def make(family: str, dtype: torch.dtype, device: torch.device) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})
    attention = "eager" if family == "gpt_oss" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            parameter.copy_(parameter.bfloat16())  # the same weights in every dtype
    return model.to(device, dtype).train()


def whole(model: Any, ids: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss and gradients of its mean by the model itself, a document at a time."""
    total = 0.0
    starts = [start for start in STARTS if start < len(ids)]
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0, :-1]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = functional.cross_entropy(wide, ids[start + 1 : stop], reduction="sum")
        (loss / (len(ids) - len(starts))).backward()
        total += loss.item()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return total, found


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative distance of all gradients together, of the sinks', and of the worst tensor."""
    if missing := wanted.keys() - found.keys():
        raise ValueError(f"no gradient of {sorted(missing)[:3]}")

    def of(names: list[str]) -> float:
        off = sum(float((found[n].to(wanted[n].device).double() - wanted[n]).norm()) ** 2 for n in names)
        return (off / max(sum(float(wanted[n].norm()) ** 2 for n in names), 1e-60)) ** 0.5

    sinks = [name for name in wanted if name.endswith("sinks")]
    floor = 1e-3 * sum(float(w.norm()) ** 2 for w in wanted.values()) ** 0.5
    apart = {n: float((found[n].to(w.device).double() - w).norm() / (w.norm() + floor)) for n, w in wanted.items()}
    return {"all": of(list(wanted)), "worst": max(apart.values()), **({"sinks": of(sinks)} if sinks else {})}


def parity(family: str, device: torch.device, tokens: int) -> list[dict[str, Any]]:
    from engine.attention.select import usable_backends
    from engine.models import families
    from engine.plan.stream_plan import StreamPlan
    from engine.streaming.latent_attention import latent_attention
    from engine.streaming.step import StreamedStep

    families.admit(family, families.Family())
    torch.backends.cuda.matmul.allow_tf32 = False
    ids = torch.randint(3, WORDS, (tokens,), generator=torch.Generator().manual_seed(1)).to(device)
    starts = [start for start in STARTS if start < tokens]
    loss, wanted = whole(make(family, torch.float64, device), ids)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        plain = make(family, dtype, device)
        plain_loss, plain_found = whole(plain, ids)
        apart = {"loss": abs(plain_loss / loss - 1), **distance(plain_found, wanted)}
        rows.append({"family": family, "dtype": name, "kernel": "transformers", **apart})
        width = {"gpt_oss": 64, "deepseek_v3": 192, "minicpm3": 96}[family]
        for backend in usable_backends(device, dtype, width):
            for what, options in PLANS.items():
                model = make(family, dtype, device)
                with StreamedStep(model, StreamPlan(**options, attention=backend.name), device=device) as step:
                    for _ in range(2):  # the second finds buffers in use
                        model.zero_grad()
                        step.wide_gradients.clear()
                        total = step.run(ids, document_starts=starts).loss_sum
                    sums = step.wide_gradients.sums
                    all_found = {n: sums.get(p, p.grad) for n, p in model.named_parameters()}
                    found = {n: gradient for n, gradient in all_found.items() if gradient is not None}
                stored = "latents" if latent_attention(model.model.layers[0]) is not None else "keys and values"
                rows.append(
                    {
                        "family": family,
                        "dtype": name,
                        "kernel": backend.name,
                        "plan": what,
                        "stored": stored,
                        "loss": abs(total / loss - 1),
                        **distance(found, wanted),
                    }
                )
    return rows


def cost(device: torch.device, tokens: int, *, small: bool) -> list[dict[str, Any]]:
    """Two layers of DeepSeek-V2-Lite's widths with a dense MLP, an adapter on all of them."""
    from engine.benchmarking.streaming import reset_peak, synchronize
    from engine.config import LoraSection
    from engine.models import families
    from engine.models.adapter import attach_adapter
    from engine.models.placement import choose_placement
    from engine.models.random import random_model_of
    from engine.plan.stream_plan import StreamPlan
    from engine.streaming.step import StreamedStep

    families.admit("deepseek_v3", families.Family())
    wide = {} if small else {"hidden_size": 2048, "intermediate_size": 10944}
    heads = 8 if small else 16
    shape = {**COMMON, **LATENT, **wide, "num_attention_heads": heads, "num_key_value_heads": heads}
    dense = {"num_hidden_layers": 2, "first_k_dense_replace": 2, "vocab_size": 4096}
    config = AutoConfig.for_model("deepseek_v3", **{**shape, **dense})
    rows = []
    for stored in ("latents", "keys and values"):
        torch.manual_seed(0)
        placement = choose_placement(device.type, "bf16" if device.type == "cuda" else "fp32")
        model = attach_adapter(random_model_of(config, placement, device), LoraSection(rank=16), seed=0).train()
        plan = StreamPlan(tile=64 if small else 4096, key_block=64 if small else 8192, loss_piece=1024)
        ids = torch.randint(3, 4096, (tokens,), generator=torch.Generator().manual_seed(1))
        whole_keys = mock.patch("engine.streaming.workspace.latent_attention", return_value=None)
        with StreamedStep(model, plan, device=device) as step:
            if stored != "latents":
                whole_keys.start()
            step.run(ids)
            model.zero_grad()
            synchronize(device)
            reset_peak(device)
            began = time.perf_counter()
            outcome = step.run(ids)
            synchronize(device)
            seconds = time.perf_counter() - began
            norm = sum(float(p.grad.double().norm()) ** 2 for p in model.parameters() if p.grad is not None) ** 0.5
            caches = step.streamed.workspace.attention.caches
            held = sum(x.untyped_storage().nbytes() for c in caches for x in vars(c).values() if torch.is_tensor(x))
            backend = step.backend_name
            if stored != "latents":
                whole_keys.stop()
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        rows.append(
            {
                "stored": stored,
                "tokens": tokens,
                "seconds": seconds,
                "peak_bytes": peak,
                "cache_bytes_per_token": held / tokens,
                "loss": outcome.loss_sum / outcome.predicted,
                "gradient_norm": norm,
                "kernel": backend,
            }
        )
        del model
    return rows


def main() -> int:
    from engine.benchmarking.machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few tokens, to try the script itself")
    parser.add_argument("--only", nargs="*", default=[*FAMILIES, "cost"])
    args = parser.parse_args()
    device = torch.device(args.device)
    results: dict[str, Any] = {
        "command": f"python benchmarks/sinks_gpu.py {' '.join(sys.argv[1:])}",
        **describe_machine(device),
        "parity": [],
        "cost": [],
        "errors": {},
    }
    for name in args.only:
        began = time.perf_counter()
        try:
            if name == "cost":
                results["cost"] = cost(device, 500 if args.small else 65536, small=args.small)
            else:
                results["parity"] += parity(name, device, 400 if args.small else 1500)
        except Exception as problem:
            results["errors"][name] = traceback.format_exc(limit=6)
            print(f"{name}: {type(problem).__name__}: {problem}", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    print("family       dtype     kernel        plan               all      worst    sinks    loss")
    for row in results["parity"]:
        sinks = f"{row['sinks']:.1e}" if "sinks" in row else "-"
        print(
            f"{row['family']:12} {row['dtype']:9} {row['kernel']:13} {row.get('plan', 'whole sequence'):18} "
            f"{row['all']:.1e}  {row['worst']:.1e}  {sinks:8} {row['loss']:.1e}"
        )
    for row in results["cost"]:
        print(
            f"{row['stored']:15} {row['tokens']:,} tokens: {row['seconds']:.2f} s, "
            f"peak {row['peak_bytes'] / 2**30:.2f} GiB, {row['cache_bytes_per_token']:,.0f} bytes a token, "
            f"norm {row['gradient_norm']:.6g}, {row['kernel']}"
        )
    return 1 if results["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
