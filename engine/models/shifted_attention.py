"""LongLoRA's shifted sparse attention (arXiv 2309.12307). Training attends within groups, evaluation is full attention.

A window of n tokens is cut into groups of a quarter of the context. Half of the heads attend within those. The other
half attends within groups shifted by half a group, so that information flows between neighbouring groups. The paper
rolls the sequence for that, which lets the first tokens see the last ones. Here the cuts move instead, and attention
stays causal.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from engine.attention.backend import repeat_heads
from engine.attention.rule import chunk_of
from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.models.layer_settings import values_of_layers
from engine.models.layers import decoder_layers

IMPLEMENTATION = "elite_shifted"
"""Name under which transformers finds the function."""
GROUPS = 4
"""Groups in a window of the context's length."""


def shift_attention(model: Any, context: int) -> None:
    """Makes every decoder layer attend within groups of a quarter of `context` while it trains.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, for layers with sinks, capped scores, chunks, or a window shorter than
            `context`, which the groups would leave out, in evaluation as well.
    """
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    problem, window = "", _narrowest_window(model.config)
    if not model._supports_sdpa or capped or any(map(chunk_of, model.modules())):
        problem = "its own attention is more than a softmax over earlier keys"
    elif window is not None and window < context:
        problem = f"layers attend through a window of {window:,} tokens, shorter than the context"
    if problem:
        raise MODEL_FAMILY_UNSUPPORTED(
            family=model.config.model_type,
            feature="shifted sparse attention",
            problem=problem,
            supported="training.shifted_attention false",
        )
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
    model.config._attn_implementation = IMPLEMENTATION
    for layer in decoder_layers(model):
        layer.self_attn.elite_group = max(2, -(-context // GROUPS))


def _narrowest_window(config: Any) -> int | None:
    """Returns the fewest keys that a query of any layer sees; None where every layer sees all."""
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    if "sliding_attention" not in kinds:
        return None
    window: int | None = min((found for found in values_of_layers(config, "sliding_window") if found), default=None)
    return window


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - is_causal replaces it
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Implements transformers' AttentionInterface; returns (batch, n, heads, head_dim)."""
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    training = isinstance(module, nn.Module) and module.training
    halves = zip(*(x.chunk(2, dim=1) for x in (query, key, value)), strict=True)
    outs = []
    for half, (q, k, v) in enumerate(halves):
        cuts = list(_cuts(q.shape[2], module.elite_group, shifted=bool(half))) if training else [0, q.shape[2]]
        parts = [
            scaled_dot_product_attention(
                q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], dropout_p=dropout, is_causal=True, scale=scaling
            )
            for a, b in pairwise(cuts)
        ]
        outs.append(torch.cat(parts, dim=2))
    return torch.cat(outs, dim=1).transpose(1, 2), None


def _cuts(length: int, group: int, *, shifted: bool) -> Iterator[int]:
    """Yields the borders of the groups, from 0 to `length`."""
    yield 0
    yield from range(group // 2 if shifted else group, length, group)
    yield length
