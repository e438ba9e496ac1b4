"""Measurement process: `python -m engine.benchmarking.profile_child`. Prints each result as a JSON line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engine.benchmarking.gpu_room import measure_context, measure_room
from engine.benchmarking.rates import (
    attention_rates,
    device_copy_rate,
    disk_rates,
    launch_seconds,
    link_rates,
    matrix_rates,
    ram_rates,
)

Step = tuple[str, Callable[[], dict[str, Any]]]


def main() -> int:
    """Runs the measurements in order, and prints each result at once in case the next one kills the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--free", type=int, default=0)
    parser.add_argument("--busy", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.cores)
    use_gpu = given.gpu and torch.cuda.is_available()
    _say({"torch": torch.__version__})
    if given.gpu and not use_gpu:
        _say({"gpu_problem": "torch sees no CUDA device: it may be built without CUDA, or the driver is too old"})
    device = torch.device("cuda", 0) if use_gpu else torch.device("cpu")
    steps = list(_steps(device, given.disk, busy=given.busy, free=given.free))
    for done, (what, measure) in enumerate(steps):
        _say({"progress": {"what": what, "done": done, "total": len(steps)}})
        _say(measure())
    return 0


def _steps(device: torch.device, disk: Path, *, busy: bool, free: int) -> Iterator[Step]:
    yield "writing and copying RAM", ram_rates
    yield "writing and reading the disk", lambda: disk_rates(disk)
    if device.type == "cuda":
        yield "how much GPU memory can be had", lambda: measure_room(device, busy=busy)
        yield "copies between host and GPU", lambda: link_rates(device)
        yield "copies inside the GPU", lambda: device_copy_rate(device)
    yield "matrix products", lambda: matrix_rates(device)
    yield "attention", lambda: attention_rates(device)
    yield "starting operations", lambda: {"launch": launch_seconds(device)}
    if free and not busy:
        yield "what the GPU keeps for the process", lambda: measure_context(device, free)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
