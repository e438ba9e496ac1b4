"""Attention of a packed sequence within each document, by torch's fused attention, without a mask.

A block-diagonal mask would take n² bytes, rule out the fastest kernels, and compute the blocks that it then masks.
Computed separately, documents cost only their own squares. Sinks and caps, for which transformers has only eager
attention with its n² scores, and chunks are computed block by block as in the streamed step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.attention.backend import AttentionBackend, repeat_heads
from engine.attention.blockwise import attend, attend_backward
from engine.attention.mask_tiles import Piece, causal_pieces
from engine.attention.rule import AttentionRule, chunk_of
from engine.attention.select import documents_backend, select_backend
from engine.attention.sinks import sink_gradient, with_sinks
from engine.attention.softcapped import SoftcappedAttention
from engine.attention.unequal_heads import for_heads

IMPLEMENTATION = "elite_packed"
"""Name under which transformers finds the function."""

KEY_BLOCK = 8192
"""Most keys in one call of a block's kernel."""

_borders: tuple[int, ...] | None = None


@contextlib.contextmanager
def packed_attention(config: Any, starts: Sequence[int], tokens: int) -> Iterator[None]:
    """Makes a model attend within documents only while the context is open, for forward and backward.

    Models that run flash-attn's own kernels find the documents by their positions, and are left unchanged. Those that
    transformers can only compute eagerly come here with a single document too.

    Args:
        config: Configuration of the decoder.
        starts: First position of each document, ascending from 0.
        tokens: Length of the sequence.
    """
    global _borders
    before = config._attn_implementation
    # SDPA leaves caps out without a word.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if (len(starts) == 1 and before != "eager" and not capped) or "flash" in str(before):
        yield
        return
    _register()
    _borders, config._attn_implementation = (*starts, tokens), IMPLEMENTATION
    try:
        yield
    finally:
        _borders, config._attn_implementation = None, before


@torch.compiler.disable  # type: ignore[untyped-decorator]  # every window has other borders, and would recompile
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
    """Implements transformers' AttentionInterface: (1, heads, n, head_dim) to (1, n, heads, head_dim)."""
    if _borders is None:
        raise RuntimeError("no packed sequence is being run: this model's attention implementation was left behind")
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    rule = AttentionRule(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        chunk=chunk_of(module),
        sinks=s_aux,
        softcap=softcap,
    )
    if s_aux is not None or softcap is not None or rule.chunk is not None:
        if dropout:
            raise RuntimeError(f"{type(module).__name__} has dropout in its attention, which is not computed here")
        states = (x.to(dtype) for x in (query, key, value))
        blocks: Tensor = _Blockwise.apply(*states, s_aux, _borders, rule)  # type: ignore[no-untyped-call]
        return blocks.transpose(1, 2), None
    longest = max(stop - start for start, stop in pairwise(_borders))
    kernel = None
    if dropout == 0 and (sliding_window is None or longest <= sliding_window):
        kernel = _documents_kernel(dtype, query, key, value)
    if kernel is not None:
        states = (x.to(dtype) for x in (query, key, value))
        backend = for_heads(kernel, key, value)
        together: Tensor = AllDocuments.apply(*states, _borders, rule.scale, backend)  # type: ignore[no-untyped-call]
        return together.transpose(1, 2), None
    parts = []
    lengths = [stop - start for start, stop in pairwise(_borders)]
    documents = (states.split(lengths, dim=2) for states in (query, key, value))
    for length, q, *kv in zip(lengths, *documents, strict=True):
        window = None if sliding_window is None or length <= sliding_window else _band(length, sliding_window, q.device)
        # With a mask, grouped heads would fall back to a kernel that keeps all scores.
        k, v = kv if window is None else (repeat_heads(states, q.shape[1]) for states in kv)
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


class AllDocuments(torch.autograd.Function):
    """Computes attention inside each of several documents in one kernel call.

    One by one, each document would cost launches, and cuDNN, torch's choice on Hopper, plans for each length.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, borders: Sequence[int], scale: float, backend: AttentionBackend
    ) -> Tensor:
        """Computes out (1, heads, n, head_dim); shapes and borders as in AttentionBackend.forward_documents."""
        out, logsumexp = backend.forward_documents(q, k, v, borders=borders, scale=scale)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.borders, ctx.scale, ctx.backend = borders, scale, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the gradients of q (1, heads, n, head_dim) and of k, v (1, kv_heads, n, head_dim)."""
        q, k, v, out, logsumexp = ctx.saved_tensors
        how = {"borders": ctx.borders, "scale": ctx.scale}
        return *ctx.backend.backward_documents(grad_out, q, k, v, out, logsumexp, **how), None, None, None


class _Blockwise(torch.autograd.Function):
    """Computes attention by any AttentionRule inside each of several documents, in memory that grows with n."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, borders: Sequence[int], rule: AttentionRule
    ) -> Tensor:
        how = _how(q, k, v, borders, rule)
        out, logsumexp = attend(q, k, v, earlier=_Nothing(), **how)
        if sinks is not None:
            out, logsumexp = with_sinks(out, logsumexp, sinks)
        ctx.save_for_backward(q, k, v, out, logsumexp, sinks)
        ctx.how = how
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp, sinks = ctx.saved_tensors
        found = attend_backward(grad_out, q, k, v, out, logsumexp, earlier=_Nothing(), **ctx.how)
        dq, dk, dv = (gradient.to(x.dtype) for gradient, x in zip(found, (q, k, v), strict=True))
        of_sinks = sink_gradient(grad_out, out, logsumexp, sinks).to(sinks.dtype) if ctx.needs_input_grad[3] else None
        return dq, dk, dv, of_sinks, None, None


def _how(q: Tensor, k: Tensor, v: Tensor, borders: Sequence[int], rule: AttentionRule) -> dict[str, Any]:
    """Returns the arguments of `attend` beside tensors: mask tiles of all documents, the kernel, the scale."""
    starts, tokens = rule.borders(borders[:-1], borders[-1]), borders[-1]
    pieces: list[Piece] = list(
        causal_pieces(0, tokens, key_block=KEY_BLOCK, window=rule.window, document_starts=starts)
    )
    width = max(k.shape[-1], v.shape[-1])
    if rule.softcap is not None:
        capped = SoftcappedAttention(rule.softcap)
        return {"start": 0, "pieces": pieces, "backend": capped, "scale": rule.scale}
    with _own_graphs():
        backend = for_heads(select_backend(q.device, q.dtype, q.shape[1], k.shape[1], width), k, v)
    return {"start": 0, "pieces": pieces, "backend": backend, "scale": rule.scale}


def _documents_kernel(dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor) -> AttentionBackend | None:
    width = max(q.shape[-1], v.shape[-1])
    with _own_graphs():
        return documents_backend(q.device, dtype, q.shape[1], k.shape[1], width)


def _own_graphs() -> contextlib.AbstractContextManager[object]:
    """Hides the graphs of the first call, which checks kernels, from a checkpoint around the layer."""
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


class _Nothing:
    """A KeyValueSource without keys: the only tile of a sequence has none before it."""

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Takes no ranges."""
        assert not ranges

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Has no keys to return."""
        raise AssertionError(f"keys {start} to {stop} before the first")

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:  # noqa: ARG002
        """Has no keys to take gradients of."""
        raise AssertionError(f"gradients of keys {start} to {stop} before the first")


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Makes the mask of a sliding window, (length, length), bool; True where the query sees the key."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril().triu(1 - window)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attention_function)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
