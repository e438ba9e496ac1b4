"""Measures the GPU memory that a process can allocate, by plain allocations that are freed at once."""

from __future__ import annotations

from typing import Any

import torch

_MIB = 2**20
_MARGIN = 128 * _MIB
"Bytes left free, since the display may need a little at any time."
_BUSY_SHARE = 0.1
"Share of the GPU left free while other processes compute on it."
_SMALLEST = 16 * _MIB


def measure_room(device: torch.device, *, busy: bool) -> dict[str, Any]:
    """Measures the largest allocation and the sum of allocations, in bytes, within the currently free memory.

    Args:
        device: A CUDA device.
        busy: Whether other processes compute on it; a tenth of the GPU is then left to them.
    """
    torch.empty(1, device=device)
    free, total = torch.cuda.mem_get_info(device)
    spare = max(_MARGIN, round(_BUSY_SHARE * total) if busy else 0)
    room = max(0, free - spare)
    largest = _largest_piece(room, device)
    pieces: list[torch.Tensor] = []
    taken = 0
    size = largest
    while size >= _SMALLEST and taken < room:
        size = min(size, room - taken)
        try:
            pieces.append(torch.empty(size, dtype=torch.uint8, device=device))
            taken += size
        except torch.OutOfMemoryError:
            size //= 2
    pieces.clear()
    torch.cuda.empty_cache()
    found: dict[str, Any] = {"gpu_room": taken, "gpu_largest": largest}
    if busy:
        found["gpu_problem"] = "other processes were computing on it: a tenth of the card was left to them"
    return found


def _largest_piece(room: int, device: torch.device) -> int:
    """Returns the largest allocation of at most `room` bytes, to within a sixty-fourth."""
    low, high = 0, room
    while high - low > max(_SMALLEST, room // 64):
        size = high if low == 0 else (low + high) // 2
        try:
            torch.empty(size, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            high = size - 1 if low else size // 2
        else:
            low = size
            if size == room:
                break
        torch.cuda.empty_cache()
    return low


def measure_context(device: torch.device, free_before: int) -> dict[str, Any]:
    """Measures the bytes of this process's CUDA context, after it has run kernels of every kind.

    Args:
        device: A CUDA device that no other process computes on.
        free_before: Its free bytes before this process used it.
    """
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    taken = free_before - free - torch.cuda.memory_reserved(device)
    return {"gpu_context": taken} if taken > 0 else {}
