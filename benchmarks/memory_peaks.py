"""Reads how much memory a step takes on a GPU: the peak of each stage, and which lines of code hold it at the peak."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any


class Peaks:
    """Most bytes allocated and reserved, by stage."""

    def __init__(self, device: Any) -> None:
        import torch

        self._device, self._cuda = device, torch.cuda
        self.taken: dict[str, tuple[int, int]] = {}
        self._cuda.reset_peak_memory_stats(device)

    def take(self, stage: str) -> None:
        """What was reached since the last call belongs to `stage`."""
        allocated, reserved = self.taken.get(stage, (0, 0))
        self.taken[stage] = (
            max(allocated, self._cuda.max_memory_allocated(self._device)),
            max(reserved, self._cuda.max_memory_reserved(self._device)),
        )
        self._cuda.reset_peak_memory_stats(self._device)


def trace_peak(work: Any, device: Any) -> list[dict[str, Any]]:
    """Who holds the memory when most of it is allocated: bytes and count by line of code and block size."""
    import torch

    torch.cuda.empty_cache()
    before = {
        block["address"]: block["size"]
        for segment in torch.cuda.memory_snapshot()
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }
    torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=4_000_000)
    work()
    torch.cuda.synchronize(device)
    events = torch.cuda.memory._snapshot()["device_traces"][device.index or 0]
    torch.cuda.memory._record_memory_history(enabled=None)
    live: dict[int, tuple[int, str]] = {address: (size, "before the step") for address, size in before.items()}
    held = sum(size for size, _ in live.values())
    most, when = held, 0
    for number, event in enumerate(events):
        if event["action"] == "alloc":
            live[event["addr"]] = (event["size"], "")
            held += event["size"]
        elif event["action"] == "free_requested":
            held -= live.pop(event["addr"], (0, ""))[0]
        if held > most:
            most, when = held, number
    live = {address: (size, "before the step") for address, size in before.items()}
    for event in events[: when + 1]:
        if event["action"] == "alloc":
            live[event["addr"]] = (event["size"], where(event["frames"]))
        elif event["action"] == "free_requested":
            live.pop(event["addr"], None)
    groups: Counter[tuple[str, int]] = Counter()
    for size, place in live.values():
        groups[place, size] += 1
    largest = sorted(groups.items(), key=lambda item: -item[0][1] * item[1])[:60]
    return [{"where": place, "size": size, "count": count} for (place, size), count in largest]


def where(frames: list[dict[str, Any]]) -> str:
    """The innermost lines of this project, of transformers and of liger on a stack."""
    wanted = ("/engine/", "/transformers/", "/liger_kernel/", "/peft/", "/bitsandbytes/")
    lines = [
        f"{'/'.join(Path(frame['filename']).parts[-2:])}:{frame['line']} {frame['name']}"
        for frame in frames
        if any(part in frame["filename"] for part in wanted)
    ]
    return " < ".join(lines[:4]) or "autograd"


def rss() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def clear(device: Any) -> None:
    """As at the start of a process, but for loaded kernels."""
    import torch

    gc.collect()
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
