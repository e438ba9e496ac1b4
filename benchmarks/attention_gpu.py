"""TFLOP/s of attention blocks by backend, tile and key block, and milliseconds of packed documents, on the GPU here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.select import usable_backends
from engine.attention.tokens_first import TokensFirst
from engine.benchmarking.streaming import timed
from engine.streaming.lone_tile import DeviceDocuments

SHAPES = ((12, 2, 128), (14, 2, 64), (28, 4, 128), (16, 2, 256), (8, 4, 256))
"""Query heads, key heads, width."""

BLOCKS = ((4096, 32768), (8192, 32768), (8192, 131072), (16384, 32768), (16384, 65536))
"""Queries and keys."""

ENDS = (0, 700, 4000, 8192, 8192)
"""Packed documents, one of them without a token."""


def main() -> None:
    device = torch.device("cuda", 0)
    for shape in SHAPES:
        for backend in usable_backends(device, torch.bfloat16, shape[2]):
            if backend.name == "efficient":
                continue
            for tile, keys in BLOCKS:
                print(block(backend, shape, tile, keys, device), flush=True)
            if isinstance(backend, TokensFirst):
                print(documents(backend, shape, device), flush=True)


def block(backend: AttentionBackend, shape: tuple[int, int, int], tile: int, keys: int, device: torch.device) -> str:
    """Times a block that sees all its keys, forward and backward."""
    heads, kv_heads, head_dim = shape
    q, grad_out, k, v = tensors(shape, tile, keys, device)
    scale = head_dim**-0.5
    out, lse = backend.forward(q, k, v, causal=False, scale=scale)
    forward = timed(lambda: backend.forward(q, k, v, causal=False, scale=scale), device)
    backward = timed(lambda: backend.backward(grad_out, q, k, v, out, lse, causal=False, scale=scale), device)
    flops = 4 * tile * keys * heads * head_dim / 1e12
    return (
        f"{backend.name:12} H{heads}/{kv_heads} D{head_dim} {tile:6} x {keys:6}: "
        f"forward {flops / forward:4.0f} backward {2.5 * flops / backward:4.0f} TFLOP/s"
    )


def documents(backend: TokensFirst, shape: tuple[int, int, int], device: torch.device) -> str:
    """Times forward and backward of packed documents as a CUDA graph, as a short step runs them."""
    heads, kv_heads, head_dim = shape
    tokens = ENDS[-1]
    q, grad_out, k, v = tensors(shape, tokens, tokens, device)
    packed = DeviceDocuments(backend, torch.tensor(ENDS, dtype=torch.int32, device=device), tokens)
    how = {"borders": (0, tokens), "scale": head_dim**-0.5}

    def both() -> None:
        out, lse = packed.forward_documents(q, k, v, **how)
        packed.backward_documents(grad_out, q, k, v, out, lse, **how)

    both()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        both()
    milliseconds = 1e3 * timed(graph.replay, device)
    return f"{backend.name:12} H{heads}/{kv_heads} D{head_dim} documents {ENDS}: both passes {milliseconds:.2f} ms"


def tensors(shape: tuple[int, int, int], queries: int, keys: int, device: torch.device) -> list[torch.Tensor]:
    heads, kv_heads, head_dim = shape
    return [
        torch.randn((1, length, number, head_dim), dtype=torch.bfloat16, device=device).transpose(1, 2)
        for number, length in ((heads, queries), (heads, queries), (kv_heads, keys), (kv_heads, keys))
    ]


if __name__ == "__main__":
    main()
