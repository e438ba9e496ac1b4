"""Held-out loss at equal tokens with the embedded demo model: LoRA+ and the context curriculum, each at its best rate.

python benchmarks/convergence.py --repo DIR [--output DIR] [--seeds N] [--steps N]

Writes benchmarks/results/convergence.json, and prints the table last. Every row is a real run of `engine train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from engine.config import RunConfig, from_mapping
from engine.evaluation.ablation import Outcome, Variation, measure, tokens_to_reach
from engine.launch import preflight

RESULTS = ROOT / "benchmarks/results/convergence.json"
RATES = {"lora": (3e-4, 1e-3, 3e-3, 1e-2), "lora+ 16": (3e-5, 1e-4, 3e-4, 1e-3)}


def config(args: argparse.Namespace, seed: int, context: int, **changes: dict) -> RunConfig:
    steps = args.steps
    training = {
        "context": context,
        "tokens_per_update": 1024,
        "max_steps": steps,
        "evaluate_every": max(1, steps // 10),
        "evaluate_tokens": 8192,
        "seed": seed,
        "epochs": 1000.0,
        **changes.get("training", {}),
    }
    data = {"repositories": args.repo, "fim": 0.0}
    return preflight.check(
        from_mapping(
            {
                "training": training,
                "lora": changes.get("lora", {}),
                "data": data,
                "output": {"directory": str(args.output)},
            }
        )
    )


def run_all(args: argparse.Namespace, name: str, context: int, **changes: dict) -> list[Outcome]:
    outcomes = []
    for seed in range(args.seeds):
        variation = Variation(id=name, on=True, seed=seed, config=config(args, seed, context, **changes))
        outcomes.append(measure(variation))
        last = outcomes[-1]
        print(f"{name} seed {seed}: {last.held_out_loss} in {last.seconds:.0f} s {last.problem}", file=sys.stderr)
    return outcomes


def mean_loss(outcomes: list[Outcome]) -> float:
    return statistics.fmean(o.held_out_loss for o in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repo", action="append", required=True)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    results: dict[str, list[Outcome]] = {}
    for rate in RATES["lora"]:
        results[f"LoRA, rate {rate:g}"] = run_all(args, f"lora {rate:g}", 256, training={"learning_rate": rate})
    for rate in RATES["lora+ 16"]:
        results[f"LoRA+ (ratio 16), rate {rate:g}"] = run_all(
            args, f"lora+ {rate:g}", 256, training={"learning_rate": rate}, lora={"plus_ratio": 16.0}
        )
    best = min(RATES["lora"], key=lambda rate: mean_loss(results[f"LoRA, rate {rate:g}"]))
    for name, on in (("windows of 1,024", False), ("curriculum 128 → 1,024", True)):
        settings = {"learning_rate": best, "curriculum": on}
        results[f"LoRA, rate {best:g}, {name}"] = run_all(args, name, 1024, training=settings)
    report(args, results)


def report(args: argparse.Namespace, results: dict[str, list[Outcome]]) -> None:
    import torch

    from engine.benchmarking.machine import describe_machine

    rows = {name: [dataclasses.asdict(outcome) for outcome in runs] for name, runs in results.items()}
    for row in itertools.chain.from_iterable(rows.values()):
        row.pop("run")
    stored = {
        "command": f"python benchmarks/convergence.py --repo . --seeds {args.seeds} --steps {args.steps}",
        "machine": describe_machine(torch.device("cpu")),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    print(table(stored))


def table(stored: dict) -> str:
    """Rows of one context are compared with the best plain LoRA of that context."""
    lines = ["| run | held-out loss | tokens to the reference's loss | tokens/s |", "|---|---|---|---|"]
    groups = {}
    for name, runs in stored["rows"].items():
        groups.setdefault("1,024" in name, {})[name] = runs
    for group in groups.values():
        plain = {n: r for n, r in group.items() if n.startswith("LoRA,") and "curriculum" not in n}
        reference = min(plain, key=lambda n: statistics.fmean(o["held_out_loss"] for o in plain[n]))
        for name, runs in group.items():
            losses = [o["held_out_loss"] for o in runs]
            shares = []
            for outcome, base in zip(runs, group[reference], strict=True):
                reached = tokens_to_reach([tuple(p) for p in outcome["curve"]], base["curve"][-1][1])
                if reached is not None:
                    shares.append(reached / base["tokens"])
            share = f"{statistics.fmean(shares):.0%} ({len(shares)} of {len(runs)})" if shares else "not reached"
            spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
            speed = statistics.fmean(o["tokens_per_second"] for o in runs)
            mark = " (reference)" if name == reference else ""
            lines.append(f"| {name}{mark} | {statistics.fmean(losses):.3f}{spread} | {share} | {speed:,.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
