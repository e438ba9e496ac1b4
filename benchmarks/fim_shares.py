"""What a share of fill-in-the-middle costs and brings: the demo model fine-tuned on one package with several shares.

    python benchmarks/fim_shares.py OUT.json [--device cuda] [--shares 0 0.15 0.3 0.5 0.9] [--package accelerate]
    python benchmarks/fim_shares.py OUT.json --device cpu --tiny      to try this script

The package is that of this environment, its path in site-packages. All shares train at the same time, each with the
same updates, seed and held-out files, which are never rearranged. `engine evaluate` gives perplexity, bodies of
functions that are completed, and bodies that are filled in, with 95% intervals of their difference to the base.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


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


def measure(share: float, package: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
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
    return {
        "share": share,
        "train_seconds": trained,
        "seconds": time.monotonic() - began,
        "perplexity": found["perplexity"],
        "tasks": found["tasks"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.15, 0.3, 0.5, 0.9])
    parser.add_argument("--package", default="accelerate")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--functions", type=int, default=128)
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
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(len(args.shares)) as pool:
        started = [pool.submit(measure, share, package, Path(temporary) / f"{share:g}", args) for share in args.shares]
        rows = [one.result() for one in started]
    result = {
        "command": " ".join(["python", "benchmarks/fim_shares.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": describe_machine(torch.device(args.device)),
        "package": f"{args.package} {importlib.import_module('importlib.metadata').version(args.package)}",
        "settings": {name: getattr(args, name) for name in ("steps", "context", "tokens", "functions")},
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        perplexity = f"{row['perplexity']['base']:.3f} -> {row['perplexity']['tuned']:.3f}"
        print(f"share {row['share']:.2f}: perplexity {perplexity}, {row['seconds']:.0f} s")
        for task in row["tasks"]:
            for figure in task["rows"]:
                print(f"    {task['task']} {figure['name']}: {figure['base']:.3f} -> {figure['tuned']:.3f}")


if __name__ == "__main__":
    main()
