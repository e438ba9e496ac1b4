"""The kernel of the gradients inside chunks, in Triton's interpreter, which runs a GPU's kernels on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHILD = """
import math
from itertools import pairwise

import numpy
import torch
from triton import language
from triton.runtime import interpreter

from engine.models.delta_rule import chunk_gradients
from engine.models.delta_rule_kernel import fused_chunk_gradients
from tests.models.test_delta_rule import objective

own = interpreter.InterpreterBuilder.create_dot


def widened(x):
    # The interpreter keeps bf16 as its bits, and multiplies them as numbers.
    if x.dtype.scalar != language.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), language.float32)


interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: own(self, widened(a), widened(b), *rest)


def draw_all(tokens, heads, value_heads, width, value_width, seed, size=64, batch=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    chunks = -(-tokens // size)
    q, k = draw(batch, tokens, heads, width), draw(batch, tokens, heads, width)
    v, do, dv = (draw(batch, tokens, value_heads, value_width) for _ in range(3))
    h, dh = (draw(batch, chunks, value_heads, width, value_width) for _ in range(2))
    w = draw(batch, tokens, value_heads, width)
    steps = -0.5 * torch.rand(batch, tokens, value_heads, generator=generator, dtype=torch.float64)
    g = torch.cat([part.cumsum(1) for part in steps.split(size, dim=1)], dim=1)
    return {"q": q, "k": k, "v": v, "do": do, "h": h, "dh": dh, "w": w, "g": g, "dv": dv}


def rounded(parts, dtype):
    return {name: x.float() if name == "g" else x.to(dtype) for name, x in parts.items()}


def exact(parts, scale, size=64):
    # By autograd of the definition.
    x = {name: tensor.double() for name, tensor in parts.items()}
    leaves = {name: x[name].requires_grad_() for name in ("q", "k", "w")}
    decay = (x["g"] * math.log(2)).requires_grad_()
    total = objective(
        leaves["q"], leaves["k"], leaves["w"], decay, x["v"], x["do"], x["h"], x["dh"], x["dv"], scale, size
    )
    return torch.autograd.grad(total, [*leaves.values(), decay])


def same(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() < tolerance * other.norm(), ((one - other).norm() / other.norm(), tolerance)


def backwards(parts):
    return {name: x.transpose(-1, -2).contiguous() if name in ("h", "dh") else x for name, x in parts.items()}


TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
for number, (tokens, heads, value_heads, width, value_width) in enumerate(
    [(130, 1, 2, 128, 64), (64, 2, 2, 64, 128), (77, 1, 1, 256, 96), (1, 1, 2, 24, 40)]
):
    parts = draw_all(tokens, heads, value_heads, width, value_width, number)
    for dtype, tolerance in TOLERANCES.items():
        inputs = rounded(parts, dtype)
        wanted = exact(inputs, width**-0.5)
        same(fused_chunk_gradients(**inputs, scale=width**-0.5), wanted, tolerance)
        same(fused_chunk_gradients(**backwards(inputs), scale=width**-0.5, state_v_first=True), wanted, tolerance)

# Two sequences of a batch, and smaller chunks.
inputs = rounded(draw_all(70, 1, 2, 16, 32, 9, size=32, batch=2), torch.float32)
same(fused_chunk_gradients(**inputs, scale=0.3, chunk_size=32), exact(inputs, 0.3, 32), 2e-6)

# Packed documents: as each by itself.
borders = [0, 5, 69, 70, 150]
alone = [rounded(draw_all(stop - start, 1, 2, 16, 32, start), torch.float32) for start, stop in pairwise(borders)]
packed = {name: torch.cat([part[name] for part in alone], dim=1) for name in alone[0]}
found = fused_chunk_gradients(**packed, scale=0.3, cu_seqlens=torch.tensor(borders))
wanted = [exact(part, 0.3) for part in alone]
same(found, [torch.cat(parts, dim=1) for parts in zip(*wanted)], 2e-6)

# Decays that underflow within a chunk leave no NaN.
inputs = rounded(draw_all(100, 1, 1, 16, 16, 3), torch.float32)
inputs["g"] = inputs["g"] * 40
found = fused_chunk_gradients(**inputs, scale=0.3)
same(found, chunk_gradients(**{name: x.double() for name, x in inputs.items()}, scale=0.3), 1e-5)
"""


def test_the_kernels_gradients_are_those_of_autograd():
    """Widths of 16 to 256, odd lengths, fp32 and bf16, grouped heads, both layouts of the state, packed documents."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when triton is imported
    command = [sys.executable, "-c", CHILD]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
