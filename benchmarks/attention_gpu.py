"""TFLOP/s of attention blocks by backend, tile and key block on the GPU here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from engine.attention.select import usable_backends
from engine.benchmarking.streaming import timed


def main() -> None:
    device = torch.device("cuda", 0)
    for heads, kv_heads, head_dim in ((12, 2, 128), (14, 2, 64), (28, 4, 128)):
        for backend in usable_backends(device, torch.bfloat16, head_dim):
            if backend.name == "efficient":
                continue
            for tile, keys in ((4096, 32768), (8192, 32768), (8192, 131072), (16384, 32768), (16384, 65536)):
                q, g = (
                    torch.randn((1, tile, heads, head_dim), dtype=torch.bfloat16, device=device).transpose(1, 2)
                    for _ in range(2)
                )
                k, v = (
                    torch.randn((1, keys, kv_heads, head_dim), dtype=torch.bfloat16, device=device).transpose(1, 2)
                    for _ in range(2)
                )
                scale = head_dim**-0.5
                out, lse = backend.forward(q, k, v, causal=False, scale=scale)
                forward = timed(lambda: backend.forward(q, k, v, causal=False, scale=scale), device)
                backward = timed(lambda: backend.backward(g, q, k, v, out, lse, causal=False, scale=scale), device)
                flops = 4 * tile * keys * heads * head_dim / 1e12
                print(
                    f"{backend.name:6} H{heads}/{kv_heads} D{head_dim} {tile:6} x {keys:6}: "
                    f"forward {flops / forward:4.0f} backward {2.5 * flops / backward:4.0f} TFLOP/s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
