"""Seconds a step of training on the CPU by how OpenMP's threads wait: alone, and beside processes that compute.

    python benchmarks/threads.py [--repo DIR] [--steps N]

The demo model in windows of 1,024 tokens, one real run of `engine train` for each way (engine/hardware/environment.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

WAYS = {
    "spinning": {"OMP_WAIT_POLICY": "ACTIVE"},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "300 rounds": {"GOMP_SPINCOUNT": "300"},
    "3,000 rounds": {"GOMP_SPINCOUNT": "3000"},
    "30,000 rounds": {"GOMP_SPINCOUNT": "30000"},
}


def seconds_a_step(way: dict[str, str], repo: str, steps: int) -> float:
    from engine.config import from_mapping
    from engine.launch import preflight
    from engine.launch.launcher import launch
    from engine.protocol.events import StepCompleted

    before = dict(os.environ)
    os.environ.update(way)
    with tempfile.TemporaryDirectory() as folder:
        training = {"context": 1024, "tokens_per_update": 1024, "max_steps": steps, "evaluate_tokens": 1024}
        config = from_mapping(
            {
                "model": {"name": "demo", "device": "cpu"},
                "data": {"repositories": [repo]},
                "training": {**training, "step": "streamed", "epochs": 100.0},
                "output": {"directory": folder},
            }
        )
        handle = launch(preflight.check(config))
        seconds = []
        while handle.ending is None:
            seconds += [e.event.seconds for e in handle.poll() if isinstance(e.event, StepCompleted)]
            time.sleep(0.1)
        handle.close()
    os.environ.clear()
    os.environ.update(before)
    return statistics.median(seconds[2:])


def spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repo", default=str(ROOT / "engine"))
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"| threads | alone | beside {cores} processes |\n|---|---|---|")
    alone = {name: seconds_a_step(way, args.repo, args.steps) for name, way in WAYS.items()}
    others = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(cores)]
    for process in others:
        process.start()
    for name, way in WAYS.items():
        print(f"| {name} | {alone[name]:.2f} s | {seconds_a_step(way, args.repo, args.steps):.2f} s |", flush=True)
    for process in others:
        process.kill()


if __name__ == "__main__":
    main()
