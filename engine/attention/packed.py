"""Attention of a packed sequence: each document to itself only, by torch's fused attention, without a mask.

A block-diagonal mask would take n² bytes, keep the fastest kernels away, and compute the blocks that it then hides.
Documents one by one cost their own squares only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IMPLEMENTATION = "elite_packed"
"""Name under which transformers finds the function."""

_borders: tuple[int, ...] | None = None


@contextlib.contextmanager
def packed_attention(config: Any, starts: Sequence[int], tokens: int) -> Iterator[None]:
    """Within, a model of this config attends within documents only; forward and backward belong inside.

    Models that run flash-attn's own kernels find the documents by their positions, and are left as they are.

    Args:
        config: The decoder's.
        starts: First position of each document, ascending from 0.
        tokens: Length of the sequence.
    """
    global _borders
    before = config._attn_implementation
    if len(starts) == 1 or "flash" in str(before):
        yield
        return
    _register()
    _borders, config._attn_implementation = (*starts, tokens), IMPLEMENTATION
    try:
        yield
    finally:
        _borders, config._attn_implementation = None, before


@torch.compiler.disable  # type: ignore[untyped-decorator]  # every window has other borders, and would compile anew
def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the documents' borders take its place
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Signature of transformers' AttentionInterface: (1, heads, n, head_dim) to (1, n, heads, head_dim)."""
    if _borders is None:
        raise RuntimeError("no packed sequence is being run: this model's attention implementation was left behind")
    if softcap is not None or s_aux is not None:
        raise RuntimeError(
            f"{type(module).__name__} uses soft-capping or sinks, which fused attention does not compute"
        )
    parts = []
    for start, stop in pairwise(_borders):
        q, k, v = (states[:, :, start:stop] for states in (query, key, value))
        length = stop - start
        window = None if sliding_window is None or length <= sliding_window else _band(length, sliding_window, q.device)
        if window is not None:  # with a mask, grouped heads would fall back to a kernel that keeps all scores
            k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=window,
            dropout_p=dropout,
            is_causal=window is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        parts.append(out.transpose(1, 2))
    return torch.cat(parts, dim=1), None


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Which keys each query of a sliding window sees: (length, length), bool."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril().triu(1 - window)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attention_function)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
