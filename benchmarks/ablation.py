"""What each optimisation changes on a GPU: Qwen2.5-Coder-1.5B's shapes with random weights, at 8K and at 128K tokens.

python benchmarks/ablation.py whole [--repo DIR] [--ids ID ...]    real runs of `engine train`, 8,192 tokens a window
python benchmarks/ablation.py streamed                             single exact steps of 131,072 tokens

Adds to benchmarks/results/ablation.json (or --out), and prints the table last. Random weights: memory and speed are
those of the real model, losses mean nothing and are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks/results/ablation.json"
MODEL = "qwen2.5-coder-1.5b"
GIB = 2**30
BEGAN = time.monotonic()
WHOLE = (
    "fused_kernels",
    "qlora",
    "gradient_checkpointing",
    "tiled_mlp",
    "torch_compile",
    "adamw_8bit",
    "dora",
    "ema",
    "lookahead",
    "neftune",
    "label_smoothing",
    "streamed_backprop",
)
STREAMED: dict[str, dict[str, Any]] = {
    "without fused kernels": {"fused": False},
    "baseline: NF4, stash, hidden states on the host": {},
    "attention_stash off": {"plan": {"stash": False}},
    "selective_checkpointing every 2": {"plan": {"checkpoint_every": 2}},
    "activation_4bit: 8 bits (approximate)": {"plan": {"activation_bits": 8}},
    "activation_4bit: 4 bits (approximate)": {"plan": {"activation_bits": 4}},
    "paged_kv": {"plan": {"kv_home": "host"}},
    "activation_offload off: hidden states on the GPU": {"plan": {"hidden_home": "gpu"}},
    "qlora off: bf16": {"precision": "bf16"},
    "weight_streaming: bf16": {"precision": "bf16", "plan": {"weights": "streamed"}},
}


def whole(args: argparse.Namespace) -> list[dict]:
    """`engine ablate` over a folder with the shapes' random weights and the demo's tokenizer."""
    from engine.commands.ablate import summarise
    from engine.config import from_mapping
    from engine.evaluation.ablation import measure, variations
    from engine.hardware.inventory import take_inventory
    from engine.launch import preflight
    from engine.models.catalogue import find_model

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random-1.5b"
        write_random_model(args.model, model)
        training = {
            "context": args.context,
            "tokens_per_update": args.context,
            "max_steps": args.steps,
            "evaluate_tokens": args.context,
            "step": "whole",
            "recompute": "always",
            "epochs": 100.0,
        }
        config = from_mapping(
            {
                "model": {"name": str(model), "precision": "nf4"},
                "data": {"repositories": args.repo or [str(ROOT / "engine")], "packing": True},
                "training": training,
                "checkpoint": {"every_minutes": 1000.0},
                "output": {"directory": str(Path(folder) / "out")},
            }
        )
        config = preflight.check(config)
        todo = variations(config, take_inventory(Path(folder)), find_model(str(model)), args.ids or WHOLE)
        outcomes = []
        for variation in todo:
            if time.monotonic() - BEGAN > args.seconds:
                print(f"no time left for {variation.id}", file=sys.stderr)
                break
            outcomes.append(measure(variation))
            last = outcomes[-1]
            print(f"{last.id}: {last.tokens_per_second} tok/s in {last.seconds:.0f} s {last.problem}", file=sys.stderr)
    return [
        {
            "context": args.context,
            "what": row["id"] if row["id"] == "baseline" else f"{row['id']} {'on' if row['on'] else 'off'}",
            "tokens_per_second": row["tokens_per_second"],
            "gpu_peak": row["gpu_peak"],
            "host_peak": row["host_peak"],
            "problem": row["problem"],
        }
        for row in summarise(outcomes)
    ]


def write_random_model(name: str, folder: Path) -> None:
    import torch

    from engine.assets import asset
    from engine.models.catalogue import find_model
    from engine.models.placement import Placement
    from engine.models.random import random_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = random_model(find_model(name), Placement(device=device, precision="bf16", compute="bf16"))
    made.config.max_position_embeddings = 32768
    made.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(asset("demo-model", file), folder / file)
    del made
    torch.cuda.empty_cache()


def streamed(args: argparse.Namespace) -> list[dict]:
    """Exact steps, one option changed at a time. Without fused kernels first: they stay for the whole process."""
    import gc

    import torch

    from engine.benchmarking.streaming import measure_step
    from engine.models.catalogue import find_model
    from engine.models.placement import choose_placement
    from engine.plan.stream_plan import StreamPlan

    rows: list[dict[str, Any]] = []
    for name, change in STREAMED.items():
        precision = change.get("precision", "nf4")
        weights = "nf4" if precision == "nf4" else "resident"
        plan = StreamPlan(**{"weights": weights, "tile": 16384, "key_block": 65536, **change.get("plan", {})})
        row = {"context": 131_072, "what": name, "problem": "", "plan": dataclasses.asdict(plan)}
        row["layers"] = args.layers
        try:
            measured = measure_step(
                find_model(args.model),
                131_072,
                plan,
                choose_placement("cuda", precision),
                layers=args.layers,
                repeats=2,
                fused=change.get("fused", True),
            )
            row |= {
                "tokens_per_second": 131_072 / measured["seconds"]["total"],
                "gpu_peak": measured["gpu_peak_allocated"],
                "host_peak": measured["host_rss_bytes"],
            }
        except Exception as error:
            row |= {"tokens_per_second": None, "gpu_peak": None, "host_peak": None, "problem": str(error)[:200]}
        rows.append(row)
        print(f"{name}: {row['tokens_per_second']} tok/s {row['problem']}", file=sys.stderr)
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| context | | tokens/s | GPU peak | RAM |", "|---|---|---|---|---|"]
    for row in rows:
        if row["problem"]:
            lines.append(f"| {row['context']:,} | {row['what']} | failed: {row['problem']} | | |")
            continue
        gpu = "n/a" if row["gpu_peak"] is None else f"{row['gpu_peak'] / GIB:.2f} GiB"
        host = f"{row['host_peak'] / GIB:.1f} GiB"
        lines.append(f"| {row['context']:,} | {row['what']} | {row['tokens_per_second']:,.0f} | {gpu} | {host} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("whole", "streamed"))
    parser.add_argument("--repo", action="append", default=[])
    parser.add_argument("--ids", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--context", type=int, default=8192, help="of `whole`")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which `whole` begins no further run")
    parser.add_argument("--layers", type=int, help="of `streamed`, if not all: every layer is the same work")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = {"whole": whole, "streamed": streamed}[args.part](args)

    import torch

    from engine.benchmarking.machine import describe_machine

    stored = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    new = {(row["context"], row["what"]) for row in rows}
    kept = [row for row in stored["rows"] if (row["context"], row["what"]) not in new]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored = {"machine": describe_machine(device), "model": args.model, "rows": [*kept, *rows]}
    args.out.write_text(json.dumps(stored, indent=1) + "\n")
    print(table(stored["rows"]))


if __name__ == "__main__":
    main()
