"""Measures a machine's rates with short loops of the operations that training runs. All are per second."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.select import usable_backends
from engine.benchmarking.streaming import synchronize, timed
from engine.hardware.measured import NARROW, WIDE

_MIB = 2**20
_HEADS, _KV_HEADS = 8, 2
_HEAD_DIMS = (64, 128)
_LONG = 1.0
"Seconds of timed runs beyond which there is no third run."


def _rate(work: Callable[[], Any], amount: float, device: torch.device) -> float:
    """Returns amount / seconds, the best of three runs after a warm-up, or of two where they are slow.

    It is never a single run, which other work on the machine can make thirty times as slow.
    """
    best = timed(work, device, repeats=2)
    return amount / (best if 2 * best > _LONG else min(best, timed(work, device, repeats=1)))


def _formats(device: torch.device) -> list[torch.dtype]:
    if device.type == "cpu":
        return [torch.float32]
    bf16 = [torch.bfloat16] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    return [*bf16, torch.float16, torch.float32]


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def matrix_rates(device: torch.device) -> dict[str, Any]:
    """Times products of a tile with a wide and with a narrow square matrix, in every format of the device."""
    rows = 8192 if device.type == "cuda" else 512
    found: dict[str, dict[str, float]] = {"matrix": {}, "narrow_matrix": {}}
    for dtype in _formats(device):
        for kind, width in (("matrix", WIDE), ("narrow_matrix", NARROW)):
            x = torch.randn((rows, width), device=device).to(dtype)
            weight = torch.randn((width, width), device=device).to(dtype)
            repeats = 8 if device.type == "cuda" else 1

            def run(x: torch.Tensor = x, weight: torch.Tensor = weight, repeats: int = repeats) -> None:
                for _ in range(repeats):
                    x @ weight

            found[kind][_name(dtype)] = _rate(run, repeats * 2.0 * rows * width * width, device)
    return found


def attention_rates(device: torch.device) -> dict[str, Any]:
    """Times one block of queries against a longer one of keys, with every usable kernel."""
    gpu = device.type == "cuda"
    queries, keys = (8192, 16384) if gpu else (512, 2048)
    dtype = _formats(device)[0]
    found = []
    for head_dim in _HEAD_DIMS:
        q, grad = (_heads(_HEADS, queries, head_dim, dtype, device) for _ in range(2))
        k, v = (_heads(_KV_HEADS, keys, head_dim, dtype, device) for _ in range(2))
        for backend in usable_backends(device, dtype, head_dim):
            with contextlib.suppress(RuntimeError):  # this GPU or library version may refuse a kernel
                forward, backward = _attention_rate(backend, q, k, v, grad)
                found.append({"backend": backend.name, "head_dim": head_dim, "forward": forward, "backward": backward})
    return {"attention": found}


def _attention_rate(
    backend: AttentionBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor
) -> tuple[float, float]:
    """Returns operations a second, forward and backward (2 matrix products against 5).

    Shapes: q, grad (1, heads, queries, head_dim); k, v (1, kv_heads, keys, head_dim).
    """
    scale = q.shape[3] ** -0.5
    flops = 4.0 * q[0, :, :, 0].numel() * k.shape[2] * q.shape[3]
    out, logsumexp = backend.forward(q, k, v, causal=False, scale=scale)

    def forward() -> None:
        backend.forward(q, k, v, causal=False, scale=scale)

    def backward() -> None:
        backend.backward(grad, q, k, v, out, logsumexp, causal=False, scale=scale)

    return _rate(forward, flops, q.device), _rate(backward, 2.5 * flops, q.device)


def _heads(count: int, length: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn((1, length, count, head_dim), device=device).to(dtype).transpose(1, 2)


def launch_seconds(device: torch.device, count: int = 2000) -> float:
    """Returns the seconds that Python takes to launch one small operation, without waiting for its result."""
    x = torch.zeros(16, device=device)
    best = float("inf")
    for _ in range(3):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            x.add_(1.0)
        best = min(best, (time.perf_counter() - began) / count)
    synchronize(device)
    return best


def device_copy_rate(device: torch.device) -> dict[str, Any]:
    """Measures bytes read and written a second inside the GPU's memory."""
    source = torch.empty(256 * _MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {"device_copy": _rate(lambda: target.copy_(source), 2 * source.numel(), device)}


def link_rates(device: torch.device) -> dict[str, Any]:
    """Measures copies between host and GPU, in each direction, from pinned and from pageable memory."""
    on_device = torch.empty(256 * _MIB, dtype=torch.uint8, device=device)
    ordinary = torch.zeros(256 * _MIB, dtype=torch.uint8)
    pinned = ordinary.pin_memory()
    size = on_device.numel()
    return {
        "to_device": _rate(lambda: on_device.copy_(pinned, non_blocking=True), size, device),
        "to_host": _rate(lambda: pinned.copy_(on_device, non_blocking=True), size, device),
        "to_device_pageable": _rate(lambda: on_device.copy_(ordinary), size, device),
        "to_host_pageable": _rate(lambda: ordinary.copy_(on_device), size, device),
    }


def ram_rates() -> dict[str, Any]:
    """Measures writes to host memory, and copies inside it."""
    cpu = torch.device("cpu")
    source = torch.zeros(128 * _MIB, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return {
        "ram_write": _rate(source.zero_, source.numel(), cpu),
        "ram_copy": _rate(lambda: target.copy_(source), 2 * source.numel(), cpu),
    }


def disk_rates(folder: Path, size: int = 256 * _MIB) -> dict[str, Any]:
    """Writes a temporary file through to the disk, and reads it back past the page cache.

    A full disk gives no figure; a file system in memory gives that memory's rate.
    """
    block = os.urandom(4 * _MIB)
    try:
        with tempfile.TemporaryFile(buffering=0, dir=folder, prefix="elite-profile-") as file:
            began = time.perf_counter()
            for _ in range(size // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            written = time.perf_counter() - began
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            began = time.perf_counter()
            while file.read(len(block)):
                pass
            read = time.perf_counter() - began
    except OSError:
        return {}
    return {"disk_write": size / written, "disk_read": size / read}
