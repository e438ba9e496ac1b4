"""The attention function of a streamed step whose sequence is sharded over ranks.

A rank's queries need keys of all ranks, so that a layer is run tile by tile in two legs. The first runs every tile up
to its attention (COLLECT). Then the ranks exchange (engine.distributed.exchange), and the second leg continues from the
attention's output (OUTPUT). The backward pass runs from the layer's output down to that of its attention (BELOW),
exchanges, and runs from queries, keys and values down to the layer's input (ABOVE). Each leg recomputes the part of
the layer before its attention, which at a long context is little beside attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.attention.rule import AttentionRule
from engine.attention.sinks import sink_gradient, with_sinks
from engine.distributed.exchange import Attended, Exchange, heads_first
from engine.streaming import attention as streamed_attention
from engine.streaming.mixer import KvCollected, Mixer, Pass
from engine.streaming.saved_attention import SavedAttention


class Leg(Enum):
    """Part of the layer that is run."""

    COLLECT = "up to the attention: keep queries, keys and values"
    OUTPUT = "with the attention's output, which is there"
    BELOW = "as OUTPUT with a graph from the attention's output on; keeps queries, keys and values too"
    ABOVE = "up to the attention with a graph, which ends in queries, keys and values"


class SharedAttention:
    """Holds one layer's tensors in this rank, (tokens, heads, head_dim), and computes its tiles' attention.

    Queries, keys and values are filled up with zeros to the widest of their heads, since they travel together.

    Args:
        exchange: Computes attention over all ranks.
        rows: Tokens that this rank keeps.
    """

    def __init__(self, exchange: Exchange, rows: int) -> None:
        self._exchange, self._rows = exchange, rows
        self._leg, self._tile = Leg.COLLECT, slice(0, 0)
        self._q = self._kv = self._grad_out = self._dq = self._dkv = torch.empty(0)
        self._attended: Attended | None = None
        self._rule = AttentionRule(scale=1.0)
        self._value_dim = 0
        self._leaf = torch.empty(0)
        self._inputs: tuple[Tensor, ...] = ()

    def begin(self, leg: Leg, tile: slice) -> None:
        """Sets the leg and the rows of this rank for the next call of `compute`."""
        self._leg, self._tile = leg, tile

    # --- called by the layer ---------------------------------------------------------------------------------

    def compute(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """Keeps q, k, v of the present tile, or returns its attention output, by leg; shapes as in AttentionBackend.

        Raises:
            KvCollected: in COLLECT and ABOVE, which do not need the rest of the layer.
        """
        self._rule, self._value_dim = rule, v.shape[3]
        if self._leg is Leg.ABOVE:
            self._inputs = (q, k, v)
            raise KvCollected
        if self._leg in (Leg.COLLECT, Leg.BELOW):
            self._keep(q, k, v)
        if self._leg is Leg.COLLECT:
            raise KvCollected
        assert self._attended is not None
        out = heads_first(self._attended.out[self._tile])
        if self._leg is Leg.OUTPUT:
            return out
        self._leaf = out.detach().requires_grad_()
        # A view, because the layer may write into its input in place, which a leaf does not allow.
        return self._leaf.view_as(self._leaf)

    def _keep(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if not self._q.numel():
            width = max(k.shape[3], v.shape[3])
            empty = q.new_empty if q.shape[3] == k.shape[3] == v.shape[3] else q.new_zeros
            self._q = empty((self._rows, q.shape[1], width))
            self._kv = empty((2, self._rows, k.shape[1], width))
        pairs = ((self._q[self._tile], q), (self._kv[0, self._tile], k), (self._kv[1, self._tile], v))
        for place, value in pairs:
            place[..., : value.shape[3]].copy_(value.detach().squeeze(0).transpose(0, 1))

    # --- called by the step ----------------------------------------------------------------------------------

    def forget(self) -> None:
        """Drops the tensors of a layer before another one begins."""
        self._q = self._kv = self._grad_out = self._dq = self._dkv = self._leaf = torch.empty(0)
        self._attended, self._inputs = None, ()

    def exchange_forward(self) -> None:
        """Computes the attention of all tiles, after COLLECT over them."""
        found = self._exchange.forward(self._q, self._kv, self._rule)
        out, logsumexp = found.out[..., : self._value_dim], found.logsumexp
        if self._rule.sinks is not None:
            heads, logsumexp = with_sinks(heads_first(out), logsumexp, self._rule.sinks)
            out = heads.squeeze(0).transpose(0, 1)
        self._attended = Attended(out, logsumexp)

    def keep_grad_out(self) -> None:
        """Keeps the gradient of a tile's attention output, after the backward pass of its BELOW."""
        gradient = self._leaf.grad
        assert gradient is not None
        if not self._grad_out.numel():
            self._grad_out = self._q.new_empty((*self._q.shape[:2], self._value_dim))
        self._grad_out[self._tile].copy_(gradient.squeeze(0).transpose(0, 1))
        self._leaf = torch.empty(0)

    def exchange_backward(self) -> None:
        """Computes the gradients of all tiles' queries, keys and values, after BELOW over them."""
        assert self._attended is not None
        out, logsumexp, sinks = self._attended.out, self._attended.logsumexp, self._rule.sinks
        if sinks is not None and sinks.requires_grad:
            found = sink_gradient(heads_first(self._grad_out), heads_first(out), logsumexp, sinks)
            torch.autograd.backward(sinks, found.to(sinks.dtype))
        missing = (0, self._q.shape[2] - self._value_dim)
        attended = Attended(pad(out, missing), logsumexp)
        self._dq, self._dkv = self._exchange.backward(
            pad(self._grad_out, missing), self._q, self._kv, attended, self._rule
        )
        self._grad_out = self._q = self._kv = torch.empty(0)
        self._attended = None

    def backward_above(self) -> None:
        """Backpropagates the gradients of a tile's queries, keys and values, after its ABOVE."""
        found: list[Any] = [self._dq[self._tile], self._dkv[0, self._tile], self._dkv[1, self._tile]]
        ends = [
            (x, heads_first(gradient[..., : x.shape[3]]).to(x.dtype))
            for x, gradient in zip(self._inputs, found, strict=True)
            if x.requires_grad
        ]
        self._inputs = ()
        if ends:
            torch.autograd.backward([x for x, _ in ends], [gradient for _, gradient in ends])

    # --- between the passes ----------------------------------------------------------------------------------

    def write(self, saved: SavedAttention, layer: int, spans: list[slice]) -> None:
        """Saves the attention output of a layer for the backward pass."""
        assert self._attended is not None
        for tile, span in enumerate(spans):
            saved.write(layer, tile, heads_first(self._attended.out[span]), self._attended.logsumexp[:, :, span])

    def read(self, saved: SavedAttention, layer: int, spans: list[slice]) -> None:
        """Restores the saved attention output of a layer."""
        rows, found = 0, None
        for tile, span in enumerate(spans):
            out, logsumexp = saved.read(layer, tile)
            if found is None:
                shape, sums = (self._rows, out.shape[1], out.shape[3]), (1, out.shape[1], self._rows)
                found = Attended(out.new_empty(shape), logsumexp.new_empty(sums))
            found.out[span].copy_(out.squeeze(0).transpose(0, 1))
            found.logsumexp[:, :, span].copy_(logsumexp)
            rows += span.stop - span.start
        assert rows == self._rows
        self._attended = found


class SharedMixer(Mixer):
    """The mixer of one layer whose attention the ranks compute together, in the leg that was begun.

    Args:
        shared: Computes the attention.
        config: Configuration of the model, for errors.
        layer: Number of the layer, for errors.
    """

    def __init__(self, shared: SharedAttention, config: Any, layer: int) -> None:
        self._shared, self._config, self._layer = shared, config, layer

    @contextmanager
    def running(self, _: Pass, __: int, ___: slice) -> Iterator[Mapping[str, Any]]:
        """See Mixer."""
        with streamed_attention.one_call(self._shared, self._config, self._layer):
            yield {}
