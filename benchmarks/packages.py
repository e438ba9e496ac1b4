"""Does fine-tuning make a model better on code that it has never seen? Trains on packages, and evaluates what came out.

    python benchmarks/packages.py DIR [DIR ...] --json OUT.json [--steps 200] [--functions 128] [--set KEY=VALUE ...]

For each folder by itself: `engine train` on its training files, then `engine evaluate` on its held-out ones, both as a
user runs them. Compared are the base model and the tuned one: perplexity, and functions completed from their first
lines (whether the file parses with them, edit similarity, names). Nothing that was generated is run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SETTINGS = {
    "model.name": "demo",
    "training.context": 2048,
    "training.tokens_per_update": 4096,
    "training.epochs": 1000,
    "training.learning_rate": 1.5e-3,
    "training.evaluate_tokens": 16384,
    "training.evaluate_every": 20,
    "training.early_stopping": 3,
    "data.held_out_fraction": 0.2,
    "data.fim": 0.0,
    "lora.rank": 16,
    "lora.alpha": 32,
}
"""Of every run; --set changes them. A small package is soon known by heart: the adapter with the lowest held-out loss
is what is evaluated. It is chosen on files that count again in the evaluation, on 16,384 of their tokens."""


def engine(*arguments: str) -> str:
    """Standard output of an `engine` command; what it says besides goes to this process's standard error."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "engine", *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(package: Path, settings: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Trains on one package and evaluates."""
    with contextlib.ExitStack() as stack:
        if given.keep:
            folder = given.keep / package.name
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elite-packages-")))
        if not (folder / "runs").is_dir():
            chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
            engine("train", "--repo", str(package), "--output", str(folder), "--max-steps", str(given.steps), *chosen)
        (run,) = (folder / "runs").iterdir()
        ending = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if "RunFinished" in line]
        found = json.loads(
            engine(
                "evaluate", str(run), "--functions", str(given.functions), "--tokens", str(given.tokens), "--json"
            )
        )  # fmt: skip
    kept = ("files", "tokens", "perplexity", "tasks", "notes", "seconds", "device", "context")
    return {
        "package": package.name,
        "train_seconds": round(ending[-1]["seconds"], 1),
        "steps": ending[-1]["steps"],
        **{key: found[key] for key in kept},
    }


def line(row: dict[str, Any]) -> str:
    marks = [
        f"{task['task']} {mark['name']} {mark['base']:.3f} -> {mark['tuned']:.3f} "
        f"({'no interval' if mark['difference_interval'] is None else interval(mark['difference_interval'])})"
        for task in row["tasks"]
        for mark in task["rows"]
    ]
    perplexity = row["perplexity"]
    head = f"{row['package']}: perplexity {perplexity['base']:.3f} -> {perplexity['tuned']:.3f}, "
    head += f"{row['tokens']:,} tokens of {row['files']} files; trained {row['train_seconds']:.0f} s"
    return "\n    ".join([head, *marks])


def interval(found: Any) -> str:
    low, high = (found["low"], found["high"]) if isinstance(found, dict) else found
    return f"difference {low:+.3f} to {high:+.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--functions", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--keep", type=Path, help="folder for the runs; one that is there is only evaluated again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    import torch

    from engine.benchmarking.machine import describe_machine

    settings = SETTINGS | dict(text.split("=", 1) for text in given.set)
    document: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/packages.py", *(Path(part).name for part in sys.argv[1:])]),
        "machine": describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "settings": settings,
        "packages": [],
    }
    for package in given.packages:
        document["packages"].append(measure(package.resolve(), settings, given))
        print(line(document["packages"][-1]), flush=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
