"""Attention whose scores are capped, c·tanh(s/c) (Gemma 2), which no kernel of torch computes with its logsumexp.

Written out in torch for some queries at a time, so that no tensor grows with queries × keys. With z = scale q kᵀ,
s = c tanh(z / c), P = e^(s - logsumexp) and D = rowsum(dO ∘ O):

    dS = P ∘ (dO vᵀ - D)    dZ = dS ∘ (1 - (s / c)²)    dq = scale dZ k    dk = scale dZᵀ q    dv = Pᵀ dO
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.attention.scores_at_once import SCORES_AT_ONCE

P = ParamSpec("P")
T = TypeVar("T")


def _without_autocast(compute: Callable[P, T]) -> Callable[P, T]:
    """Keeps products of fp32 tensors in fp32 where the model runs under autocast."""

    @functools.wraps(compute)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return compute(*args, **kwargs)

    return wrapped


class SoftcappedAttention(AttentionBackend):
    """Computes in fp32, or wider for wider tensors, on any device.

    Args:
        cap: c, above zero.
    """

    name = "softcapped"

    def __init__(self, cap: float) -> None:
        self._cap = cap

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:  # noqa: ARG002
        """Serves all tensors."""
        return None

    @_without_autocast
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        wide = torch.promote_types(q.dtype, torch.float32)
        keys, values = k[0].to(wide), v[0].to(wide)
        out = torch.empty((1, q.shape[2], q.shape[1], v.shape[3]), dtype=q.dtype, device=q.device).transpose(1, 2)
        logsumexp = torch.empty(q.shape[:3], dtype=wide, device=q.device)
        for rows, seen, hidden in self._parts(q, k, causal=causal):
            scores = self._capped(_grouped(q, rows, k, wide), keys[:, seen], scale)
            if hidden is not None:
                _by_query(scores, hidden).masked_fill_(hidden, -torch.inf)
            sums = scores.logsumexp(-1, keepdim=True)
            found = scores.sub_(sums).exp_() @ values[:, seen]
            out[:, :, rows] = _ungrouped(found, q.shape[1]).to(q.dtype)
            logsumexp[:, :, rows] = _ungrouped(sums, q.shape[1])[..., 0]
        return out, logsumexp

    @_without_autocast
    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See AttentionBackend. The gradients of keys and values are fp32 or wider."""
        wide = torch.promote_types(q.dtype, torch.float32)
        keys, values = k[0].to(wide), v[0].to(wide)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
        for rows, seen, hidden in self._parts(q, k, causal=causal):
            queries, grad = _grouped(q, rows, k, wide), _grouped(grad_out, rows, k, wide)
            capped = self._capped(queries, keys[:, seen], scale)
            chances = (capped - _grouped(logsumexp.unsqueeze(-1), rows, k, wide)).exp_()
            if hidden is not None:
                _by_query(chances, hidden).masked_fill_(hidden, 0.0)
            dv[:, seen] += chances.transpose(1, 2) @ grad
            sums = (grad * _grouped(out, rows, k, wide)).sum(-1, keepdim=True)
            slope = (grad @ values[:, seen].transpose(1, 2)).sub_(sums).mul_(chances)
            slope.mul_(capped.div_(self._cap).square_().neg_().add_(1.0)).mul_(scale)
            dq[:, :, rows] = _ungrouped(slope @ keys[:, seen], q.shape[1]).to(q.dtype)
            dk[:, seen] += slope.transpose(1, 2) @ queries
        return dq, dk.unsqueeze(0), dv.unsqueeze(0)

    def _capped(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Computes s of queries (kv_heads, n, width) and keys (kv_heads, keys, width)."""
        return (queries @ keys.transpose(1, 2)).mul_(scale / self._cap).tanh_().mul_(self._cap)

    def _parts(self, q: Tensor, k: Tensor, *, causal: bool) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Yields some queries, the keys that one of them sees, and which are hidden from which, (queries, keys)."""
        length = max(1, SCORES_AT_ONCE // (q.shape[1] * k.shape[2]))
        for start in range(0, q.shape[2], length):
            stop = min(start + length, q.shape[2])
            if not causal:
                yield slice(start, stop), slice(0, k.shape[2]), None
                continue
            hidden = torch.ones((stop - start, stop), dtype=torch.bool, device=q.device).triu(start + 1)
            yield slice(start, stop), slice(0, stop), hidden


def _grouped(x: Tensor, rows: slice, k: Tensor, dtype: torch.dtype) -> Tensor:
    """Puts the query heads that share a KV head one after the other: (1, heads, n, d) to (kv_heads, groups · n, d)."""
    part = x[0, :, rows]
    return part.reshape(k.shape[1], -1, part.shape[-1]).to(dtype)


def _ungrouped(x: Tensor, heads: int) -> Tensor:
    return x.reshape(1, heads, -1, x.shape[-1])


def _by_query(scores: Tensor, hidden: Tensor) -> Tensor:
    """Views (kv_heads, groups · n, keys) as (kv_heads, groups, n, keys)."""
    return scores.view(scores.shape[0], -1, *hidden.shape)
