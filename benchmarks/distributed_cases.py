"""Sizes of the cases of benchmarks/distributed_gpu.py, and the record of their results."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

K = 1024


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured on a kind of device."""

    model: str
    contexts: tuple[tuple[int, int], ...]
    "Context and decoder layers of each ring case."
    other_orders: tuple[int, int]
    "Of the contiguous ring and Ulysses."
    long: dict[str, tuple[str, int]]
    "Model and context of each window that is as long as a 24 GB GPU takes."
    zero_model: str
    zero_layers: int | None
    zero_context: int
    sum_model: str
    message: int
    "Bytes of the link test."


SIZES = {
    "cuda": Sizes(
        "qwen2.5-coder-1.5b",
        ((256 * K, 28), (512 * K, 14)),
        (256 * K, 7),
        {"long-1.5b": ("qwen2.5-coder-1.5b", 1024 * K), "long-7b": ("qwen2.5-coder-7b", 512 * K)},
        "qwen2.5-coder-7b",
        None,
        4 * K,
        "qwen2.5-coder-1.5b",
        1 << 28,
    ),
    "cpu": Sizes(
        "demo",
        ((1 * K, 2), (2 * K, 2)),
        (1 * K, 2),
        {"long-1.5b": ("demo", 2 * K), "long-7b": ("demo", 1 * K)},
        "demo",
        2,
        256,
        "demo",
        1 << 20,
    ),
}


# --- in a rank -----------------------------------------------------------------------------------------------


class Record:
    """Results of one launch, written after every case by rank 0."""

    def __init__(self, path: Path, leads: bool) -> None:
        self._path, self._leads, self._rows = path, leads, []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if self._leads:
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._rows))
            partial.replace(self._path)
            print("   ", json.dumps({k: v for k, v in row.items() if k != "plan"})[:300], flush=True)


@contextlib.contextmanager
def case(record: Record, name: str, group: Any) -> Iterator[dict[str, Any]]:
    """A row that is recorded with its error, if there is one; memory is given back."""
    import torch

    row: dict[str, Any] = {"case": name, "ranks": group.size}
    if group.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        yield row
    except Exception:
        row["error"] = traceback.format_exc(limit=8)
        print(row["error"], file=sys.stderr, flush=True)
    row["took"] = time.perf_counter() - began
    record.add(row)
    gc.collect()
    if group.device.type == "cuda":
        torch.cuda.empty_cache()
    if group.size > 1:  # a rank whose case failed alone must not leave the others in it
        failed = group.total([float("error" in row)])[0]
        if failed and "error" not in row:
            row["error"] = "another rank failed"
