"""Checks on this GPU that a backend computes attention and its gradients as defined.

A kernel can be silently wrong for a layout, a head size or a GPU that its authors have not tried. So none is used
before it has computed a small block of every kind that it will be used for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend

Draw = Callable[[int, int], Tensor]
"""Draws a random (1, heads, length, head_dim) for a number of heads and a length."""

_QUERIES, _KEYS = 256, 512  # few, because the definition keeps every score, and some GPUs have little memory
_TOLERANCE = 2e-2  # relative error that 16-bit arithmetic explains


def is_right(backend: AttentionBackend, draw: Draw, heads: int, kv_heads: int, scale: float) -> bool:
    """Compares out, dq, dk and dv of a whole block, and of packed documents, with the definition.

    Enables gradients even where nothing is trained, because autograd computes the definition's gradients.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        return _is_right(backend, draw, heads, kv_heads, scale)


def _is_right(backend: AttentionBackend, draw: Draw, heads: int, kv_heads: int, scale: float) -> bool:
    q, k, v, grad_out = (draw(heads, _QUERIES), draw(kv_heads, _KEYS), draw(kv_heads, _KEYS), draw(heads, _QUERIES))
    out, logsumexp = backend.forward(q, k, v, causal=False, scale=scale)
    found = out, *backend.backward(grad_out, q, k, v, out, logsumexp, causal=False, scale=scale)
    if not _agree(found, _plain(q, k, v, grad_out, scale, causal=False)):
        return False
    for borders in backend.borders_to_check:
        q, k, v, grad_out = (draw(number, borders[-1]) for number in (heads, kv_heads, kv_heads, heads))
        if not _separates(backend, q, k, v, grad_out, borders, scale):
            return False
    return True


def _separates(
    backend: AttentionBackend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    borders: tuple[int, ...],
    scale: float,
) -> bool:
    """Whether packed documents give the same results as each document alone."""
    out, logsumexp = backend.forward_documents(q, k, v, borders=borders, scale=scale)
    tensors = (grad_out, q, k, v, out, logsumexp)
    found = out, *backend.backward_documents(*tensors, borders=borders, scale=scale)
    alone = []
    for first, last in pairwise(borders):
        rows = slice(first, last)
        alone.append(_plain(q[:, :, rows], k[:, :, rows], v[:, :, rows], grad_out[:, :, rows], scale, causal=True))
    return _agree(found, tuple(torch.cat(parts, 2) for parts in zip(*alone, strict=True)))


def _agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(_relative_error(got, want) <= _TOLERANCE for got, want in zip(found, expected, strict=True))


def _plain(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, scale: float, *, causal: bool) -> tuple[Tensor, ...]:
    """Computes out, dq, dk, dv in fp32 by the definition, one KV head at a time to bound the score matrix."""
    results = []
    group = q.shape[1] // k.shape[1]
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1) if causal else None
    for head in range(k.shape[1]):
        rows = slice(head * group, (head + 1) * group)
        leaves = [
            x.float().detach().requires_grad_() for x in (q[:, rows], k[:, head : head + 1], v[:, head : head + 1])
        ]
        scores = leaves[0] @ leaves[1].transpose(2, 3) * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        out = scores.softmax(-1) @ leaves[2]
        grads = torch.autograd.grad(out, leaves, grad_out[:, rows].float())
        results.append((out.detach(), *grads))
    return tuple(torch.cat(parts, dim=1) for parts in zip(*results, strict=True))


def _relative_error(got: Tensor, want: Tensor) -> float:
    error = ((got.float() - want).norm() / want.norm()).item()
    return error if math.isfinite(error) else math.inf
