"""Attention over a sequence whose queries, keys and values lie spread over ranks: what a layer's exchange has to do.

Tensors hold a rank's tokens one after the other, (tokens, heads, head_dim), so that any run of them is one piece of
memory. Blocks merge by their logsumexp, and the backward pass takes the whole row's output and logsumexp, as within
one device (engine/attention/blockwise.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.attention.blockwise import backward_piece, forward_piece, merge
from engine.distributed.shards import Block

FORWARD_BLOCKS = 4
"""Key blocks that one call of the forward may see: only the backward's temporaries are as long as its keys."""


@dataclass(frozen=True)
class Attended:
    """Output of a rank's queries, (tokens, heads, head_dim), and logsumexp, (1, heads, tokens), fp32 or wider."""

    out: Tensor
    logsumexp: Tensor


class Exchange(Protocol):
    """One layer's attention by all ranks together. `window`: keys that a query sees, None for all."""

    def forward(self, q: Tensor, kv: Tensor, *, scale: float, window: int | None) -> Attended:
        """Of this rank's queries over the whole sequence.

        Args:
            q: (tokens, heads, head_dim).
            kv: Keys and values, (2, tokens, kv_heads, head_dim).
            scale: Multiplies q kᵀ.
            window: See above.
        """

    def backward(
        self, grad_out: Tensor, q: Tensor, kv: Tensor, attended: Attended, *, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of q and of kv, fp32 or wider, with what every rank's queries contribute."""


def heads_first(x: Tensor) -> Tensor:
    """(tokens, heads, head_dim) seen as (1, heads, tokens, head_dim)."""
    return x.transpose(0, 1).unsqueeze(0)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.promote_types(dtype, torch.float32)


class RunningAttention:
    """Output of some queries over the keys seen so far."""

    def __init__(self, q: Tensor, backend: AttentionBackend, scale: float) -> None:
        self._q, self._backend, self._scale = q, backend, scale
        self._out = torch.zeros(q.shape, dtype=wide(q.dtype), device=q.device)
        shape = (1, q.shape[1], q.shape[0])
        self._logsumexp = torch.full(shape, -torch.inf, dtype=wide(q.dtype), device=q.device)

    def see(self, kv: Tensor, blocks: Sequence[Block]) -> None:
        """Adds keys and values, (2, their tokens, kv_heads, head_dim)."""
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
        """What the queries have seen."""
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
    """Adds to dq, and returns what these queries contribute to the gradient of kv, in dq's dtype."""
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
