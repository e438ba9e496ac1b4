"""Interface of attention over a sequence whose queries, keys and values are sharded over ranks.

Tensors hold a rank's tokens first, (tokens, heads, head_dim), so that any run of them is contiguous in memory. Blocks
merge by their logsumexp, and the backward pass takes the whole row's output and logsumexp, as within one device
(engine/attention/blockwise.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.attention.blockwise import backward_piece, forward_piece, merge
from engine.attention.rule import AttentionRule
from engine.distributed.shards import Block

FORWARD_BLOCKS = 4
"""Key blocks in one call of the forward, which has no temporaries as long as its keys, unlike the backward."""


@dataclass(frozen=True)
class Attended:
    """Output of a rank's queries, (tokens, heads, head_dim), and logsumexp, (1, heads, tokens), fp32 or wider."""

    out: Tensor
    logsumexp: Tensor


class Exchange(Protocol):
    """Computes one layer's attention by all ranks together."""

    def forward(self, q: Tensor, kv: Tensor, rule: AttentionRule) -> Attended:
        """Computes the attention of this rank's queries over the whole sequence.

        Args:
            q: (tokens, heads, head_dim).
            kv: Keys and values, (2, tokens, kv_heads, head_dim).
            rule: Mask and scores; its sinks are left to the caller.
        """

    def backward(
        self, grad_out: Tensor, q: Tensor, kv: Tensor, attended: Attended, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """Computes the gradients of q and kv, summed over the queries of all ranks.

        Args:
            grad_out: Gradient of this rank's output, (tokens, heads, head_dim).
            q, kv, rule: As in `forward`.
            attended: Result of `forward`, with the sinks that the caller added.

        Returns:
            (tokens, heads, head_dim) and (2, tokens, kv_heads, head_dim), fp32 or wider.
        """


def heads_first(x: Tensor) -> Tensor:
    """Views (tokens, heads, head_dim) as (1, heads, tokens, head_dim)."""
    return x.transpose(0, 1).unsqueeze(0)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Returns the accumulation dtype, fp32 or wider."""
    return torch.promote_types(dtype, torch.float32)


class RunningAttention:
    """Running output of queries (tokens, heads, head_dim) over the keys seen so far."""

    def __init__(self, q: Tensor, backend: AttentionBackend, scale: float) -> None:
        self._q, self._backend, self._scale = q, backend, scale
        self._out = torch.zeros(q.shape, dtype=wide(q.dtype), device=q.device)
        shape = (1, q.shape[1], q.shape[0])
        self._logsumexp = torch.full(shape, -torch.inf, dtype=wide(q.dtype), device=q.device)

    def see(self, kv: Tensor, blocks: Sequence[Block]) -> None:
        """Merges in the attention to keys and values kv, (2, tokens, kv_heads, head_dim)."""
        for block in blocks:
            rows = slice(block.query, block.query + block.queries)
            keys = slice(block.key, block.key + block.keys)
            out, logsumexp = forward_piece(
                self._backend,
                heads_first(self._q[rows]),
                heads_first(kv[0, keys]),
                heads_first(kv[1, keys]),
                block.shape,
                self._scale,
            )
            merge(heads_first(self._out[rows]), self._logsumexp[:, :, rows], out, logsumexp)

    def result(self) -> Attended:
        """Returns the output and logsumexp over all keys seen."""
        return Attended(self._out.to(self._q.dtype), self._logsumexp)


def gradients_of_blocks(
    grad_out: Tensor,
    q: Tensor,
    kv: Tensor,
    attended: Attended,
    dq: Tensor,
    blocks: Sequence[Block],
    backend: AttentionBackend,
    scale: float,
) -> Tensor:
    """Adds to dq in place, and returns the contribution of these queries to the gradient of kv.

    Args:
        grad_out, q: (tokens, heads, head_dim).
        kv: Keys and values, (2, tokens, kv_heads, head_dim), of the same or another rank.
        attended: Output and logsumexp of q over the whole sequence.
        dq: Running gradient of q, (tokens, heads, head_dim), fp32 or wider.
        blocks: Blocks of q against kv.
        backend: Kernel of one block.
        scale: Multiplies q kᵀ.

    Returns:
        (2, tokens, kv_heads, head_dim), in dq's dtype.
    """
    dkv = torch.zeros(kv.shape, dtype=dq.dtype, device=kv.device)
    for block in blocks:
        rows = slice(block.query, block.query + block.queries)
        keys = slice(block.key, block.key + block.keys)
        found = backward_piece(
            backend,
            heads_first(grad_out[rows]),
            heads_first(q[rows]),
            heads_first(kv[0, keys]),
            heads_first(kv[1, keys]),
            heads_first(attended.out[rows]),
            attended.logsumexp[:, :, rows],
            block.shape,
            scale,
        )
        for total, part in zip((dq[rows], dkv[0, keys], dkv[1, keys]), found, strict=True):
            total.add_(part.squeeze(0).transpose(0, 1))
    return dkv
