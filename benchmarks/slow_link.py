"""Measures PowerSGD against the whole sum over an emulated slow link, and says from which speed down it pays.

    python benchmarks/slow_link.py OUT.json [--model qwen2.5-coder-1.5b] [--gbits 1 10] [--device-ms 5]

Two processes on this machine's CPU sum an adapter's gradients over gloo. Each rank has a bucket that holds the bytes
that its link carries: a ring's all-reduce sends 2 (R - 1) / R of a message from every rank, and a message is over when
the bucket has held as much since it began. A compression costs computing and saves bytes: it pays where

    bytes saved / link > seconds of computing more

gloo itself carries a few Gbit/s between processes: a faster link does not bind here, and its column is gloo's time. The
computing is this CPU's; `--device-ms` adds the answer for one that takes so long instead, such as a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

REPEATS = 5
WAYS = (("whole", 0), ("powersgd r=1", 1), ("powersgd r=4", 4))


def in_a_rank(rank: int, count: int, model: str, links: Sequence[float]) -> dict[str, Any]:
    """Seconds and bytes of one sum, by way and link (bytes a second; infinite is the machine's own)."""
    import torch
    from torch import distributed

    from engine.distributed.gradient_sum import AllReduceSum, GradientSum
    from engine.distributed.powersgd import PowerSgd
    from engine.distributed.torch_process_group import TorchProcessGroup
    from engine.models.catalogue import find_model

    class LinkedTeam(TorchProcessGroup):
        """A team behind a link of so many bytes a second."""

        link = float("inf")

        def sum_tensor(self, tensor: torch.Tensor) -> None:
            began = time.perf_counter()
            super().sum_tensor(tensor)
            moved = 2 * (self.size - 1) / self.size * tensor.numel() * tensor.element_size()
            time.sleep(max(0.0, moved / self.link - (time.perf_counter() - began)))

    group = LinkedTeam(torch.device("cpu"), 600.0)
    spec = find_model(model)
    shapes = [shape for linear in spec.linears for shape in ((16, linear.inputs), (linear.outputs, 16))]
    generator = torch.Generator().manual_seed(rank)
    gradients = [torch.randn(shape, generator=generator) for _ in range(spec.layers) for shape in shapes]
    found: dict[str, Any] = {}
    for name, columns in WAYS:
        add_up: GradientSum = PowerSgd(group, columns, whole_updates=0) if columns else AllReduceSum(group)
        group.link = float("inf")
        add_up([gradient.clone() for gradient in gradients])  # factors exist from the second sum on
        for link in links:
            group.link, seconds = link, []
            for _ in range(REPEATS):
                given = [gradient.clone() for gradient in gradients]
                distributed.barrier()
                group.sent_bytes = 0
                began = time.perf_counter()
                add_up(given)
                seconds.append(time.perf_counter() - began)
            key = "own" if link == float("inf") else f"{link * 8 / 1e9:g}"
            found.setdefault(name, {"bytes": group.sent_bytes * 2 * (count - 1) // count})[key] = min(seconds)
    return found


def main() -> int:
    """Measures, writes OUT.json and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--gbits", type=float, nargs="*", default=[1.0, 10.0])
    parser.add_argument("--device-ms", type=float, nargs="*", default=[5.0, 20.0])
    args = parser.parse_args()
    import torch

    from benchmarks import slow_link  # noqa: PLW0406  # by its name, so that a new process finds the function
    from engine.launch.rank_processes import run_processes

    links = [float("inf"), *(gbits * 1e9 / 8 for gbits in args.gbits)]
    found = run_processes(slow_link.in_a_rank, 2, args.model, links, timeout=900)[0]
    whole = found["whole"]
    for name, row in found.items():
        if name != "whole":
            saved = whole["bytes"] - row["bytes"]
            more = row["own"] - whole["own"]
            row["pays_below_gbits"] = {"this CPU": saved * 8 / 1e9 / more} if more > 0 else {}
            for device_ms in args.device_ms:
                row["pays_below_gbits"][f"{device_ms:g} ms"] = saved * 8 / 1e9 / (device_ms * 1e-3)
    result = {
        "command": "python benchmarks/slow_link.py " + " ".join(sys.argv[1:]),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        },
        "versions": {"torch": torch.__version__},
        "model": args.model,
        "ranks": 2,
        "repeats": REPEATS,
        "sums": found,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    names = ["own", *(f"{gbits:g}" for gbits in args.gbits)]
    print(
        "| sum of an adapter's gradients | sent a rank | "
        + " | ".join(f"{n} Gbit/s" for n in names)
        + " | pays below |"
    )
    print("|---" * (len(names) + 3) + "|")
    for name, row in found.items():
        pays = ", ".join(f"{v:.2g} Gbit/s ({k})" for k, v in row.get("pays_below_gbits", {}).items())
        times = " | ".join(f"{row[n] * 1e3:.0f} ms" for n in names)
        print(f"| {name} | {row['bytes'] / 1e6:.2f} MB | {times} | {pays} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
