"""What a share of fill-in-the-middle costs and brings: the demo model fine-tuned on one package with several shares.

    python benchmarks/fim_shares.py OUT.json [--device cuda] [--shares 0 0.15 0.3 0.5 0.9] [--seeds 0 1 2]
    python benchmarks/fim_shares.py OUT.json --device cpu --tiny      to try this script

The package is that of this environment, its path in site-packages. `--at-once` runs train at the same time. All have
the same updates and held-out files for a seed, which are never rearranged. `engine evaluate` gives perplexity, bodies
of functions that are completed, and bodies that are filled in, with 95% intervals of their difference to the base.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
LOADING = threading.Lock()
"One thread at a time loads and scores a model here: transformers' context of empty weights is shared by threads."


def engine(folder: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "ELITE_TUI_STATE_DIR": str(folder / "state"),
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-m", "engine", *words]
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{words[0]}: exit {ended.returncode}: {ended.stderr[-1500:]}")
    return ended.stdout


def measure(share: float, seed: int, package: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    folder.mkdir()
    settings = {
        "training.context": args.context,
        "training.tokens_per_update": 2 * args.context,
        "training.epochs": 1000,
        "training.learning_rate": 1.5e-3,
        "training.evaluate_tokens": 16384,
        "evaluation.at_end": "false",
        "data.include": "[vendored, build output]",
        "data.held_out_fraction": 0.2,
        "data.fim": share,
        "training.seed": seed,
        "model.device": args.device,
        "model.precision": "fp32",
    }
    words = ["train", "--json", "--model", "demo", "--repo", str(package), "--output", str(folder / "output")]
    words += ["--max-steps", str(args.steps)]
    began = time.monotonic()
    engine(folder, *words, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")))
    (run,) = (folder / "output" / "runs").iterdir()
    trained = time.monotonic() - began
    tokens = ("--tokens", str(args.tokens), "--functions", str(args.functions))
    found = json.loads(engine(folder, "evaluate", str(run), "--json", *tokens))
    bodies = None
    if args.bodies:
        with LOADING:
            bodies = body_losses(run, args.bodies, args.device)
    print(f"share {share:g}, seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {
        "share": share,
        "seed": seed,
        "train_seconds": trained,
        "seconds": time.monotonic() - began,
        "perplexity": found["perplexity"],
        "tasks": found["tasks"],
        "bodies": bodies,
    }


def body_losses(run: Path, bodies: int, device: str) -> dict[str, dict[str, list[float]]]:
    """Cross-entropy a token, in nats, of each held-out function's body, for both models.

    A body is either predicted behind what stands before it, or filled in, between it and what stands behind it.
    """
    import torch

    from engine.data.dataset import build_dataset
    from engine.evaluation.functions import choose_functions
    from engine.evaluation.held_out import HeldOut
    from engine.generation.writer import open_writer
    from engine.runs.run_directory import RunDirectory

    writer = open_writer(str(run), device=device, notify=lambda _: None)
    encoder, config = writer.encoder, RunDirectory.open(run).load_config()
    dataset = build_dataset(
        config.data, tokenizer=writer.tokenizer, context=2048, cache=run.parent.parent / "cache", limit=2048
    )
    functions = choose_functions(HeldOut.of(dataset).texts(encoder), bodies, lambda one: len(one.body) < LONGEST)
    assert encoder.fim is not None
    asked: dict[str, list[tuple[list[int], int]]] = {"completed": [], "filled in": []}
    for one in functions:
        before, after = one.prefix[-2 * LONGEST :], one.suffix[:LONGEST]
        [ids] = encoder.encode_documents([(one.path, before + one.body)])
        [head] = encoder.encode_documents([(one.path, before)])
        asked["completed"].append(([int(token) for token in ids[:-1]], len(head) - 1))
        place = len(before), len(before) + len(one.body)
        [ids] = encoder.encode_middles([(one.path, before + one.body + after, place)])
        written = [int(token) for token in ids[:-1]]
        asked["filled in"].append((written, written.index(encoder.fim.middle) + 1))
    found: dict[str, dict[str, list[float]]] = {}
    for side in ("base", "tuned"):
        with writer.opened(side) as model, torch.no_grad():
            found[side] = {way: [_loss(model, *one) for one in ids] for way, ids in asked.items()}
    return found


def _loss(model: Any, ids: list[int], first: int) -> float:
    import torch

    given = torch.tensor([ids], device=next(model.parameters()).device)
    logits = model(input_ids=given, use_cache=False).logits[0, first - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, given[0, first:]))


LONGEST = 1500
"""Characters of a body, and half of those before it that are shown."""


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of each share's bodies to those of share 0: the mean over functions and seeds, with its interval."""
    from dataclasses import asdict

    import numpy as np

    from engine.evaluation.intervals import mean_interval

    def mean(share: float, side: str, way: str) -> Any:
        return np.mean([row["bodies"][side][way] for row in rows if row["share"] == share], axis=0)

    made = []
    for share in sorted({row["share"] for row in rows}):
        for way in ("completed", "filled in"):
            tuned, plain = mean(share, "tuned", way), mean(0.0, "tuned", way)
            interval = mean_interval(tuned - plain) if share else None
            made.append(
                {
                    "share": share,
                    "bodies": way,
                    "base": float(mean(share, "base", way).mean()),
                    "tuned": float(tuned.mean()),
                    "less_than_at_0": float((plain - tuned).mean()),
                    "difference_interval": None if interval is None else asdict(interval),
                }
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.15, 0.3, 0.5, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--at-once", type=int, default=5, help="Runs that train at the same time.")
    parser.add_argument("--package", default="accelerate")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--functions", type=int, default=128, help="That are written; 0 for none.")
    parser.add_argument(
        "--bodies", type=int, default=0, help="Of held-out functions that are predicted; needs share 0."
    )
    parser.add_argument("--tiny", action="store_true", help="A few updates and functions.")
    args = parser.parse_args()
    if args.tiny:
        args.steps, args.context, args.tokens, args.functions, args.shares = 2, 256, 512, 2, [0.0, 0.5]
    import torch

    from engine.benchmarking.machine import describe_machine

    spec = importlib.util.find_spec(args.package)
    if spec is None or spec.origin is None:
        parser.error(f"{args.package} is not installed")
    package = Path(spec.origin).parent
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(args.at_once) as pool:
        started = [
            pool.submit(measure, share, seed, package, Path(temporary) / f"{share:g}-{seed}", args)
            for seed in args.seeds
            for share in args.shares
        ]
        rows = [one.result() for one in started]
    result = {
        "command": " ".join(["python", "benchmarks/fim_shares.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": describe_machine(torch.device(args.device)),
        "package": f"{args.package} {importlib.import_module('importlib.metadata').version(args.package)}",
        "settings": {name: getattr(args, name) for name in ("steps", "context", "tokens", "functions", "bodies")},
        "rows": rows,
    }
    if args.bodies:
        result["bodies"] = compared(rows)
        for row in rows:
            row["bodies"] = {
                side: {way: sum(v) / len(v) for way, v in ways.items()} for side, ways in row["bodies"].items()
            }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        perplexity = f"{row['perplexity']['base']:.3f} -> {row['perplexity']['tuned']:.3f}"
        print(f"share {row['share']:.2f}, seed {row['seed']}: perplexity {perplexity}, {row['seconds']:.0f} s")
        for task in row["tasks"] or []:
            for figure in task["rows"]:
                print(f"    {task['task']} {figure['name']}: {figure['base']:.3f} -> {figure['tuned']:.3f}")


if __name__ == "__main__":
    main()
