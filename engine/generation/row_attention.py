"""Attention of one new token per sequence to all earlier tokens of that sequence, at lengths that only the GPU knows.

The fast kernel is FlashAttention-2's for documents of unequal length (arXiv 2307.08691): it reads no key past a row's
length. Elsewhere torch's fused attention computes all keys up to the longest row under a mask. Grouped query heads
take the place of queries there, so that no key is repeated.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.attention.backend import needs_ampere
from engine.generation.slot_cache import SlotCache
from engine.models.recurrent_mixers import Call, RecurrentMixer, routed
from engine.streaming.decoder import Decoder
from engine.streaming.mixer_cache import MixerCache

IMPLEMENTATION = "elite_rows"
"""Name under which transformers finds the function. It has no mask function: transformers then makes no mask, for
which it would wait for the GPU."""

_TOLERANCE = 2e-2  # relative error that 16-bit arithmetic explains


class RowAttention:
    """Attention and recurrent mixers of one decoding step.

    Args:
        cache: Caches of all rows.
        layers: Layer number by the id of a module.
        owners: For each layer the one whose keys and values it attends to; None for its own.
        positions: Positions of the new tokens, (batch,) int64; the batch is the first rows of the cache.
        keys: Keys that are computed under a mask, more than every position.
        flash: Whether the kernel for unequal lengths may be used.
    """

    def __init__(
        self,
        cache: SlotCache,
        layers: Mapping[int, int],
        owners: Sequence[int | None],
        positions: Tensor,
        keys: int,
        *,
        flash: bool,
    ) -> None:
        self._cache, self._layers, self._positions, self._keys = cache, layers, positions, keys
        self._owners, self._flash = owners, flash
        self._lengths = (positions + 1).to(torch.int32)
        self._starts: tuple[Tensor, Tensor] | None = None
        self._masks: dict[int | None, Tensor | None] = {}

    def compute(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Appends keys and values, and attends.

        Args:
            module: The calling attention module.
            q: (batch, heads, 1, head_dim).
            k, v: (batch, kv_heads, 1, head_dim).
            scale: Factor of the scores.
            window: Keys that a query sees, itself included; None for all.
            softcap: Bound of the scores by tanh, if any.
            sinks: Score of each head's attention sink, (heads,), if any.

        Returns:
            (batch, heads, 1, head_dim).
        """
        layer = self._layers[id(module)]
        owner = self._owners[layer]
        if owner is None:
            self._cache.append(layer, self._positions, k, v)
        keys, values = self._cache.kv(layer if owner is None else owner)
        if softcap is not None or sinks is not None or q.shape[-1] != v.shape[-1]:
            return self._by_definition(q, keys, values, scale, window, softcap, sinks)
        if self._flash:
            return flash_rows(q, keys, values, self._lengths, self._ends(len(q)), scale, window)
        return masked_rows(q, keys, values, self._mask(window), self._keys, scale)

    def _ends(self, batch: int) -> tuple[Tensor, Tensor]:
        if self._starts is None:
            self._starts = row_ends(batch, self._cache.capacity, self._positions.device)
        return self._starts

    def _mask(self, window: int | None) -> Tensor | None:
        """Returns the mask of a window's layers, (batch, 1, 1, keys) bool; None where every key is seen."""
        if window not in self._masks:
            on_cpu = self._positions.device.type == "cpu"
            whole = on_cpu and len(self._positions) == 1 and (window is None or window >= self._keys)
            self._masks[window] = None if whole else row_mask(self._lengths, self._keys, window)
        return self._masks[window]

    def _by_definition(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        batch, heads = q.shape[:2]
        k, v = (x[:batch, : self._keys].transpose(1, 2) for x in (keys, values))
        grouped = q.reshape(batch, k.shape[1], -1, q.shape[-1])
        scores = (grouped @ k.transpose(2, 3)).float() * scale
        if softcap is not None:
            scores = (scores / softcap).tanh() * softcap
        scores = scores.masked_fill(~row_mask(self._lengths, self._keys, window), -math.inf)
        if sinks is not None:
            sink = sinks.float().view(1, k.shape[1], -1, 1).expand(batch, -1, -1, 1)
            scores = torch.cat([scores, sink], -1)
        weights = scores.softmax(-1)[..., : self._keys].to(v.dtype)
        return (weights @ v).reshape(batch, heads, 1, -1)

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:
        """Continues a recurrent mixer for the first rows, x and the result (batch, 1, hidden). See MixerRunner."""
        states = MixerCache(self._cache.states(mixer.key, len(x)))
        y = call(x, states)
        self._cache.keep_states(mixer.key, states.after)
        return y


def row_ends(batch: int, capacity: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Makes the first query and the first key of each row with the end of the last one, each (batch + 1,) int32."""
    numbers = torch.arange(batch + 1, dtype=torch.int32, device=device)
    return numbers, numbers * capacity


def row_mask(lengths: Tensor, keys: int, window: int | None) -> Tensor:
    """Makes the mask, (batch, 1, 1, keys) bool, of rows of `lengths` tokens, (batch,); True where a key is seen."""
    at = torch.arange(keys, device=lengths.device)
    mask = at < lengths[:, None]
    if window is not None:
        mask = mask & (at >= lengths[:, None] - window)
    return mask[:, None, None]


def masked_rows(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, count: int, scale: float) -> Tensor:
    """Attends under a mask to the first `count` keys.

    Args:
        q: (batch, heads, 1, head_dim).
        keys, values: (rows, capacity, kv_heads, head_dim), rows at least the batch.
        mask: From `row_mask`, or None.
        count: Keys that are read.
        scale: Factor of the scores.

    Returns:
        (batch, heads, 1, head_dim).
    """
    batch, heads, _, width = q.shape
    k, v = (x[:batch, :count].transpose(1, 2) for x in (keys, values))
    grouped = q.reshape(batch, k.shape[1], -1, width)
    out = functional.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, 1, width)


def flash_rows(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    ends: tuple[Tensor, Tensor],
    scale: float,
    window: int | None,
) -> Tensor:
    """Attends to the first `lengths` keys of each row, (batch,) int32, without reading others.

    Shapes as in `masked_rows`; `ends` from `row_ends`. The kernel aligns a window to a row's own length.
    """
    batch, capacity = len(q), keys.shape[1]
    k, v = (x[:batch].flatten(0, 1) for x in (keys, values))
    limits = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    # A row is a document of one query; max_q and max_k are bounds.
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q[:, :, 0].contiguous(),
        k,
        v,
        *ends,
        1,
        capacity,
        0.0,
        False,
        False,
        scale=scale,
        seqused_k=lengths,
        **limits,
    )[0]
    return out.view(batch, -1, 1, q.shape[-1])


@cache
def flash_is_right(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> bool:
    """Whether `flash_rows` computes here what `masked_rows` does: no kernel is used before it has shown this."""
    if needs_ampere(device, dtype, head_dim, largest_head=256) is not None:
        return False
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    capacity, scale = 640, head_dim**-0.5
    lengths = torch.tensor([1, 70, 300, 640], dtype=torch.int32, device=device)
    q = draw(len(lengths), heads, 1, head_dim)
    keys, values = (draw(len(lengths), capacity, kv_heads, head_dim) for _ in range(2))
    ends = row_ends(len(lengths), capacity, device)
    try:
        for window in (None, 33):
            found = flash_rows(q, keys, values, lengths, ends, scale, window).float()
            mask = row_mask(lengths, capacity, window)
            wanted = masked_rows(q.float(), keys.float(), values.float(), mask, capacity, scale)
            if not (found - wanted).norm() <= _TOLERANCE * wanted.norm():
                return False
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):  # the GPU does not support the kernel, or its signature differs in this version
        return False
    return True


# --- the function that layers call ----------------------------------------------------------------------------------

_active: RowAttention | None = None


@contextlib.contextmanager
def attending_rows(decoder: Decoder, attention: RowAttention) -> Iterator[None]:
    """Routes the model's attention and recurrent mixers through `attention` inside the block."""
    global _active
    _register()
    config = decoder.config
    before, config._attn_implementation = config._attn_implementation, IMPLEMENTATION
    _active = attention
    try:
        with routed([mixer for of_layer in decoder.mixers for mixer in of_layer], attention):
            yield
    finally:
        _active, config._attn_implementation = None, before


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - lengths take its place
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - the model is in evaluation mode
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Implements transformers' AttentionInterface; returns (batch, 1, heads, head_dim)."""
    if _active is None:
        raise RuntimeError("no decoding step is running: this model's attention implementation was left behind")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = _active.compute(module, query, key, value, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux)
    return out.transpose(1, 2).contiguous(), None


@cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attention_function)
