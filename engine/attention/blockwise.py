"""Attention of one tile of queries over all earlier keys, block by block, and its gradient.

The forward keeps, for each query, the running output o and logsumexp l; a block with (o', l') changes them to
    l* = log(e^l + e^l')      o* = o e^(l - l*) + o' e^(l' - l*)
The backward needs no merge. With the final out and logsumexp, each block's gradients simply add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.attention.mask_tiles import Piece, Shape, trailing_documents


class KeyValueReader(Protocol):
    """Reads keys and values of the tiles before the present one."""

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Announces the ranges of the following `kv_cache` calls, in order, so that they can be prefetched."""

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Returns k, v at positions [start, stop), each (1, kv_heads, stop - start, head_dim)."""


class KeyValueSource(KeyValueReader, Protocol):
    """A KeyValueReader that also sums the gradients of its keys and values."""

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """Adds dk, dv, each (1, kv_heads, stop - start, head_dim), to the gradients at positions [start, stop)."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    start: int,
    pieces: Iterable[Piece],
    earlier: KeyValueReader,
    backend: AttentionBackend,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Computes the output and logsumexp of the tile's queries over all keys that they see.

    Args:
        q: Queries of the tile, (1, heads, tile, head_dim).
        k, v: Keys and values of the tile itself, (1, kv_heads, tile, head_dim); values may have a width of their own.
        start: Position of the tile in the sequence.
        pieces: From `causal_pieces`.
        earlier: Keys and values before `start`.
        backend: Kernel that computes one block.
        scale: Multiplies q kᵀ.

    Returns:
        out (1, heads, tile, width of v), in q's dtype; logsumexp (1, heads, tile), fp32 or wider.
    """
    todo, borders = trailing_documents(list(pieces))
    earlier.expect([(p.key_start, p.key_stop) for p in todo if p.key_stop <= start])
    if not borders:
        return _attend_pieces(q, k, v, start, todo, earlier, backend, scale)
    cut = borders[0] - start
    inside = [border - borders[0] for border in borders]
    of_documents = _whole_documents(backend, q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], inside, scale)
    if not cut:
        return of_documents
    before = _attend_pieces(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], start, todo, earlier, backend, scale)
    return torch.cat([before[0], of_documents[0]], 2), torch.cat([before[1], of_documents[1]], 2)


def _whole_documents(
    backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, borders: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    if len(borders) == 2:
        return backend.forward(q, k, v, causal=True, scale=scale)
    return backend.forward_documents(q, k, v, borders=borders, scale=scale)


def _attend_pieces(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int,
    todo: Sequence[Piece],
    earlier: KeyValueReader,
    backend: AttentionBackend,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Implements `attend` by merging the mask tiles one after the other."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out: Tensor | None = None
    logsumexp = q.new_full(q.shape[:3], -math.inf, dtype=wide)
    for piece in todo:
        rows = slice(piece.query_start - start, piece.query_stop - start)
        piece_k, piece_v = _keys_values(piece, k, v, start, earlier)
        block_out, block_logsumexp = forward_piece(backend, q[:, :, rows], piece_k, piece_v, piece.shape, scale)
        if out is None and block_out.shape[2] == q.shape[2]:
            out, logsumexp = block_out.to(wide), block_logsumexp.clone()
            continue
        out = _zeros(q, v.shape[3], wide) if out is None else out
        merge(out[:, :, rows], logsumexp[:, :, rows], block_out, block_logsumexp)
    assert out is not None
    return out.to(q.dtype), logsumexp


def _zeros(q: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Makes an output for q (1, heads, n, head_dim), (1, heads, n, width), in q's layout or tokens first."""
    if q.shape[3] == width:
        return torch.zeros_like(q, dtype=dtype)
    return q.new_zeros((1, q.shape[2], q.shape[1], width), dtype=dtype).transpose(1, 2)


def attend_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    *,
    start: int,
    pieces: Iterable[Piece],
    earlier: KeyValueSource,
    backend: AttentionBackend,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes gradients of the tile's own q, k, v, and adds those of earlier keys and values to `earlier`.

    Args:
        grad_out: Gradient of out, (1, heads, tile, head_dim).
        q, k, v, start, pieces, earlier, backend, scale: As in `attend`.
        out, logsumexp: Results of `attend`.

    Returns:
        dq (1, heads, tile, head_dim); dk, dv (1, kv_heads, tile, head_dim), from this tile's queries alone. Sums over
        several blocks are fp32 or wider; the result of a single kernel call keeps the kernel's dtype.
    """
    todo, borders = trailing_documents(list(pieces))
    earlier.expect([(p.key_start, p.key_stop) for p in todo if p.key_stop <= start])
    tensors = (grad_out, q, k, v, out, logsumexp)
    if not borders:
        return _backward_pieces(tensors, start, todo, earlier, backend, scale)
    cut = borders[0] - start
    after = [x[:, :, cut:] for x in tensors]
    if len(borders) == 2:
        of_documents = backend.backward(*after, causal=True, scale=scale)
    else:
        inside = [border - borders[0] for border in borders]
        of_documents = backend.backward_documents(*after, borders=inside, scale=scale)
    if not cut:
        return of_documents
    wide = torch.promote_types(q.dtype, torch.float32)
    before = _backward_pieces([x[:, :, :cut] for x in tensors], start, todo, earlier, backend, scale)
    dq, dk, dv = (torch.cat([a, b.to(wide)], 2) for a, b in zip(before, of_documents, strict=True))
    return dq, dk, dv


def _backward_pieces(
    tensors: Sequence[Tensor],
    start: int,
    todo: Sequence[Piece],
    earlier: KeyValueSource,
    backend: AttentionBackend,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implements `attend_backward` by summing over the mask tiles. `tensors`: grad_out, q, k, v, out, logsumexp."""
    grad_out, q, k, v, out, logsumexp = tensors
    wide = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = _Sum(q, wide), _Sum(k, wide), _Sum(v, wide)
    for piece in todo:
        rows = slice(piece.query_start - start, piece.query_stop - start)
        piece_k, piece_v = _keys_values(piece, k, v, start, earlier)
        piece_dq, piece_dk, piece_dv = backward_piece(
            backend,
            grad_out[:, :, rows],
            q[:, :, rows],
            piece_k,
            piece_v,
            out[:, :, rows],
            logsumexp[:, :, rows],
            piece.shape,
            scale,
        )
        dq.add(rows, piece_dq)
        if piece.key_start >= start:
            keys = slice(piece.key_start - start, piece.key_stop - start)
            dk.add(keys, piece_dk)
            dv.add(keys, piece_dv)
        else:
            earlier.add_gradients(piece.key_start, piece.key_stop, piece_dk, piece_dv)
    return dq.total(), dk.total(), dv.total()


class _Sum:
    """Sums contributions to rows of a tensor shaped like `like`; a whole first one is copied, not added to zeros."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._like, self._dtype = like, dtype
        self._total: Tensor | None = None

    def add(self, rows: slice, value: Tensor) -> None:
        if self._total is None and value.shape == self._like.shape:
            self._total = value.to(self._dtype, copy=True)
            return
        if self._total is None:
            self._total = torch.zeros_like(self._like, dtype=self._dtype)
        self._total[:, :, rows] += value

    def total(self) -> Tensor:
        return torch.zeros_like(self._like, dtype=self._dtype) if self._total is None else self._total


def _keys_values(piece: Piece, k: Tensor, v: Tensor, start: int, earlier: KeyValueReader) -> tuple[Tensor, Tensor]:
    if piece.key_start >= start:
        keys = slice(piece.key_start - start, piece.key_stop - start)
        return k[:, :, keys], v[:, :, keys]
    return earlier.kv_cache(piece.key_start, piece.key_stop)


def merge(out: Tensor, logsumexp: Tensor, block_out: Tensor, block_logsumexp: Tensor) -> None:
    """Merges a block into the running out and logsumexp, in place (formulas at the head of this module).

    Args:
        out: (1, heads, queries, head_dim), fp32 or wider.
        logsumexp: (1, heads, queries), fp32 or wider; -inf in rows without a block so far.
        block_out, block_logsumexp: Results of the block alone, in the same shapes.
    """
    merged = torch.logaddexp(logsumexp, block_logsumexp)
    out.mul_(torch.exp(logsumexp - merged).unsqueeze(-1))
    out.addcmul_(block_out.to(out.dtype), torch.exp(block_logsumexp - merged).unsqueeze(-1))
    logsumexp.copy_(merged)


def forward_piece(
    backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, shape: Shape, scale: float
) -> tuple[Tensor, Tensor]:
    """Computes (out, logsumexp) of a mask tile of any Shape. See AttentionBackend."""
    if shape is not Shape.ANTICAUSAL:
        return backend.forward(q, k, v, causal=shape is Shape.CAUSAL, scale=scale)
    out, logsumexp = backend.forward(q.flip(2), k.flip(2), v.flip(2), causal=True, scale=scale)
    return out.flip(2), logsumexp.flip(2)


def backward_piece(
    backend: AttentionBackend,
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    shape: Shape,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes (dq, dk, dv) of a mask tile of any Shape. See AttentionBackend."""
    if shape is not Shape.ANTICAUSAL:
        return backend.backward(grad_out, q, k, v, out, logsumexp, causal=shape is Shape.CAUSAL, scale=scale)
    flipped = (x.flip(2) for x in (grad_out, q, k, v, out, logsumexp))
    dq, dk, dv = backend.backward(*flipped, causal=True, scale=scale)
    return dq.flip(2), dk.flip(2), dv.flip(2)
