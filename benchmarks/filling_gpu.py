"""What windows filled up to repeating lengths gain on a GPU: steps over a repository's windows, as a run takes them.

    python benchmarks/filling_gpu.py OUT.json [--repo DIR] [--context 8192] [--windows 24]

The 1.5B model's shapes with random weights, NF4, LoRA r=16, streamed with all layers kept, one window an update. Each
way takes the same windows, once each: all cut to one length, as they are, and filled up (engine.steps.padding).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

MODEL = "qwen2.5-coder-1.5b"
FIRST = 2
"""Steps of each way that are not counted: they load kernels."""


class Silent:
    """Neither tells nor asks."""

    def progress(self, *_: Any, **__: Any) -> None:
        pass

    def stop_requested(self) -> bool:
        return False


def windows_of(repo: Path, context: int, count: int) -> list[Any]:
    """The windows of a run's first updates, by the demo's tokenizer."""
    from transformers import AutoTokenizer

    from engine.assets import asset
    from engine.config import from_mapping
    from engine.data.dataset import build_dataset

    config = from_mapping(
        {"model": {"name": MODEL}, "data": {"repositories": [str(repo)], "packing": True, "fim": 0.0}}
    )
    tokenizer = AutoTokenizer.from_pretrained(asset("demo-model"))
    with tempfile.TemporaryDirectory() as cache:
        train = build_dataset(config.data, tokenizer=tokenizer, context=context, cache=Path(cache)).train
        return [train[int(index)] for index in train.epoch_order(0, 0)[: count + FIRST]]


def main() -> None:
    import torch

    from engine.benchmarking.machine import describe_machine
    from engine.benchmarking.streaming import synchronize
    from engine.config import LoraSection
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.catalogue import find_model
    from engine.models.fine_tuning import AdapterTuning
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.plan.stream_plan import StreamPlan
    from engine.steps.padding import filled_length
    from engine.steps.streamed_windows import StreamedWindows

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repo", type=Path, default=ROOT / "engine")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--windows", type=int, default=24)
    given = parser.parse_args()
    windows = windows_of(given.repo, given.context, given.windows)
    spec, placement = find_model(MODEL), choose_placement("cuda", "nf4")
    base = random_model(spec, placement)
    fuse_kernels(base, placement.device)
    tuning = AdapterTuning(attach_adapter(base, LoraSection(), seed=0).train())
    optimizer = torch.optim.AdamW(trainable(tuning.model).values(), lr=1e-4)
    plan = StreamPlan(tile=given.context, weights="nf4", keep_layers=spec.layers)
    shortest = min(map(len, windows))
    ways = {
        "cut to one length": ([window.first(shortest) for window in windows], None),
        "as they are": (windows, None),
        "filled up": (windows, given.context),
    }
    rows = []
    for name, (taken, most) in ways.items():
        seconds = []
        way = StreamedWindows(
            tuning, plan, device=placement.device, spill_directory=Path(tempfile.gettempdir()), fill_up_to=most
        )
        for window in taken:
            synchronize(placement.device)
            began = time.perf_counter()
            way.run([window], 1.0 / given.context, Silent())
            optimizer.step()
            optimizer.zero_grad()
            synchronize(placement.device)
            seconds.append(time.perf_counter() - began)
        way.close()
        lengths = {len(window) if most is None else filled_length(len(window), most) for window in taken}
        rows.append(
            {
                "way": name,
                "lengths": len(lengths),
                "tokens": sum(map(len, taken[FIRST:])),
                "seconds": seconds[FIRST:],
                "median_seconds": statistics.median(seconds[FIRST:]),
            }
        )
        print(line(rows[-1]), flush=True)
        torch.cuda.empty_cache()
    result = {
        "command": "python benchmarks/filling_gpu.py",
        "machine": describe_machine(placement.device),
        "model": MODEL,
        "context": given.context,
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    speed = row["tokens"] / sum(row["seconds"])
    return f"{row['way']:<20} {row['lengths']:>3} lengths  {row['median_seconds']:.3f} s  {speed:>9,.0f} tokens/s"


if __name__ == "__main__":
    main()
