"""Attention of one tile over its own keys and all earlier ones, and its gradient.

"Keys and values" that are stored, fetched and given gradients to are latents where a layer compresses them
(engine/streaming/latent_attention.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from engine.attention.backend import AttentionBackend
from engine.attention.blockwise import KeyValueSource, attend, attend_backward
from engine.attention.mask_tiles import Piece, causal_pieces
from engine.attention.rule import AttentionRule
from engine.attention.select import BackendByWidth
from engine.attention.sinks import sink_gradient, with_sinks
from engine.streaming.kv_cache import KvCache
from engine.streaming.latent_attention import Expand, LatentSource
from engine.streaming.shared_kv import SharedKv


class SharedByLayers(Protocol):
    """What the attention layers of a step share (engine.streaming.tile_attention.AttentionLayers)."""

    backends: BackendByWidth
    key_block: int
    forward_key_block: int
    document_starts: Sequence[int]
    lone: bool
    pieces: dict[tuple[int, ...], list[Piece]]
    "Mask tiles of the present sequence that a layer has listed: those with the same rule have the same."


@dataclass(frozen=True, kw_only=True)
class TileAttention:
    """Attention of one tile's queries over its own keys and all earlier ones, and its gradient."""

    layers: SharedByLayers
    cache: KvCache
    "What is stored of the tokens before `start`."
    start: int
    "Position of the tile."
    rule: AttentionRule
    stored: tuple[Tensor, Tensor]
    "What is stored of the tile itself, each (1, kv_heads, tile, width): keys and values, or latents."
    expand: Expand | None
    "Expands what is stored to keys and values; None where it is those."
    borrowed: SharedKv | None = None
    "The earlier layer's keys and values that the tile attends to; None for its own."
    lends: bool = False
    "Whether later layers attend to the tile's keys and values too."

    def _pieces(self, length: int, key_block: int) -> list[Piece]:
        """Lists the mask tiles that the tile's queries see."""
        start, stop, rule, listed = self.start, self.start + length, self.rule, self.layers.pieces
        key = start, stop, key_block, rule.window or 0, rule.chunk or 0
        if key not in listed:
            borders = rule.borders(self.layers.document_starts, stop, start)
            pieces = causal_pieces(start, stop, key_block=key_block, window=rule.window, document_starts=borders)
            listed[key] = list(pieces)
        return listed[key]

    def _backend(self, k: Tensor, v: Tensor) -> AttentionBackend:
        return self.layers.backends.serving(k, v, self.rule.softcap)

    def _earlier(self, *, graph: bool) -> KeyValueSource:
        return self.cache if self.expand is None else LatentSource(self.cache, self.expand, graph=graph)

    def append(self) -> None:
        """Stores the tile's keys and values, or latents, for later tiles."""
        # Detached: a cache is filled in place, and would otherwise join the graph of a layer that keeps its own.
        self.cache.append(self.start, *(x.detach() for x in self.stored))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the attention of the tile; shapes as in AttentionBackend.

        Returns:
            out (1, heads, tile, width of v), in q's dtype; logsumexp (1, heads, tile), fp32 or wider.
        """
        out, logsumexp = attend(
            q,
            k,
            v,
            start=self.start,
            pieces=self._pieces(q.shape[2], self.layers.forward_key_block),
            earlier=self._earlier(graph=False),
            backend=self._backend(k, v),
            scale=self.rule.scale,
        )
        return (out, logsumexp) if self.rule.sinks is None else with_sinks(out, logsumexp, self.rule.sinks)

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the gradients of q, k, v, in their shapes and dtypes, and adds to those of earlier keys and values.

        Those of k and v include what later tiles have added, unless it goes to latents. Those of borrowed ones are
        added to those of the earlier layer.
        """
        dq, dk, dv = attend_backward(
            grad_out,
            q,
            k,
            v,
            out,
            logsumexp,
            start=self.start,
            pieces=self._pieces(q.shape[2], self.layers.key_block),
            earlier=self._earlier(graph=True),
            backend=self._backend(k, v),
            scale=self.rule.scale,
        )
        if self.borrowed is not None:
            self.borrowed.add_gradients(self.start, dk, dv)
            return dq.to(q.dtype), dk, dv
        if (self.layers.lone and not self.lends) or self.expand is not None:
            return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
        later_dk, later_dv = self.cache.gradients(self.start, self.start + q.shape[2])
        return dq.to(q.dtype), (dk + later_dk).to(k.dtype), (dv + later_dv).to(v.dtype)


class _WithGraph(Function):
    """Attention whose gradient is TileAttention.backward; `attended` gives its output and logsumexp."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        attention: TileAttention,
        attended: Callable[[], tuple[Tensor, Tensor]],
    ) -> Tensor:
        out, logsumexp = attended()
        ctx.save_for_backward(q, k, v, out, logsumexp, sinks)
        ctx.attention = attention
        # A view, so that autograd does not take the saved output's buffer for a fresh output that it may overwrite.
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        attention: TileAttention = ctx.attention
        q, k, v, out, logsumexp, sinks = ctx.saved_tensors
        of_sinks = None
        if ctx.needs_input_grad[3]:
            of_sinks = sink_gradient(grad_out, out, logsumexp, sinks).to(sinks.dtype)
        return *attention.backward(grad_out, q, k, v, out, logsumexp), of_sinks, None, None


def with_graph(
    attention: TileAttention, q: Tensor, k: Tensor, v: Tensor, attended: Callable[[], tuple[Tensor, Tensor]]
) -> Tensor:
    """Returns the attention's output, whose backward pass gives q, k, v and sinks their gradients.

    Args:
        attention: The tile's attention.
        q, k, v: Of the tile; shapes as in AttentionBackend.
        attended: Computes or reads its output and logsumexp.
    """
    result: Tensor = _WithGraph.apply(q, k, v, attention.rule.sinks, attention, attended)  # type: ignore[no-untyped-call]
    return result
