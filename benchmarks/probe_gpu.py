"""What a probe is worth: step times predicted from the rates, predicted after `engine probe`, and measured.

    python benchmarks/probe_gpu.py OUT.json [--cases N ...]

Measures the machine's rates (`engine profile`), and for each case probes one context of a model, plans again, and runs
whole steps of several contexts, all layers, random weights. Each case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

K = 1024
STREAMED = ("--step", "streamed", "--stream", "hidden_home=host")
CASES: tuple[dict[str, Any], ...] = (
    {
        "probe": ("--model", "qwen2.5-coder-1.5b", "--precision", "nf4", *STREAMED),
        "at": 64 * K,
        "steps": (32 * K, 64 * K, 128 * K),
    },
    {
        "probe": ("--model", "qwen2.5-coder-0.5b", "--precision", "bf16", *STREAMED),
        "at": 64 * K,
        "steps": (64 * K, 128 * K),
    },
    {
        "probe": ("--model", "qwen2.5-coder-1.5b", "--precision", "bf16", "--step", "whole"),
        "at": 16 * K,
        "steps": (8 * K, 16 * K),
    },
    {
        "probe": ("--model", "qwen2.5-coder-7b", "--precision", "bf16", *STREAMED),
        "at": 32 * K,
        "steps": (32 * K, 64 * K),
    },
)


def run(case: dict[str, Any], pipe: Any) -> None:
    from engine.commands import probe

    parser = argparse.ArgumentParser()
    probe.add_arguments(parser, "probe")

    def planned(context: int) -> Any:
        args = parser.parse_args([*case["probe"], "--context", str(context), "--output", "/tmp"])
        return args, *probe._planned(args)

    before = {context: seconds(planned(context)[2]) for context in case["steps"]}
    args, planning, row = planned(case["at"])
    found = probe._compare(planning, row, probe._probe(args, planning, row))
    probe._keep(planning.machine, planning, row, found)
    for context in case["steps"]:
        _, planning, row = planned(context)
        result = {
            "model": planning.spec.name,
            "plan": row.layout.as_json(),
            "probed_at": case["at"],
            "probe": found["window_seconds"],
            "context": context,
            "by_rates": before[context],
            "after_probe": seconds(row),
            "measured": step(planning, row),
        }
        pipe.send(result)
    pipe.close()


def seconds(row: Any) -> float:
    return sum(part.seconds for part in row.time)


def step(planning: Any, row: Any) -> float:
    """Seconds of a step that is not the first."""
    import torch

    from engine.benchmarking.streaming import measure_step, timed
    from engine.models.placement import choose_placement

    placement = choose_placement("cuda", row.layout.precision)
    if row.layout.stream is not None:
        taken = measure_step(planning.spec, row.context, row.layout.stream, placement, repeats=2)
        return taken["seconds"]["total"]
    from engine.benchmarking.probe import _autocast, _Silent
    from engine.config import LoraSection
    from engine.data.windows import Window
    from engine.models.adapter import attach_adapter
    from engine.models.fused import fuse_kernels
    from engine.models.random import random_model
    from engine.steps.whole_step import WholeSequenceStep

    base = random_model(planning.spec, placement)
    fuse_kernels(base, placement.device)
    model = attach_adapter(base, LoraSection(), seed=0)
    whole = WholeSequenceStep(model, recompute=row.layout.recompute, autocast=lambda: _autocast(placement))
    window = Window(torch.randint(0, planning.spec.vocab_size, (row.context,)).numpy())
    return timed(lambda: whole.run([window], 1.0 / row.context, _Silent()), placement.device)


def main() -> None:
    import subprocess

    from engine.benchmarking.machine import describe_machine

    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="Positions in CASES.")
    args = parser.parse_args()
    subprocess.run([sys.executable, "-m", "engine", "profile"], check=True, stdout=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = []
    for case in (CASES[number] for number in args.cases):
        began = time.perf_counter()
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=run, args=(case, sender))
        process.start()
        sender.close()
        try:
            while True:
                rows.append(receiver.recv())
                print(line(rows[-1]), flush=True)
        except EOFError:
            process.join()
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        import torch

        machine = describe_machine(torch.device("cuda"))
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    def off(name: str) -> str:
        return f"{row[name]:8.2f} s {row[name] / row['measured'] - 1:+7.1%}"

    return (
        f"{row['model']} {row['context']:>8,} measured {row['measured']:8.2f} s"
        f"   by rates {off('by_rates')}   after a probe {off('after_probe')}"
    )


if __name__ == "__main__":
    main()
