"""Computes the gradients of a chunked gated delta rule inside its chunks, by one Triton kernel.

It takes the place of the kernel that flash-linear-attention refuses on Hopper (engine.models.delta_rule). The product
that Triton 3.4 to 3.7.0 compiles wrongly there has a transposed accumulator as its left side. Here the transposed
scores are a product of their own, which costs one product of 64 x 64 a block of values.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _chunk_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    do,
    dv,
    g,
    h,
    dh,
    dq,
    dk,
    dw,
    dg,
    bounds,
    scale,
    parts_stride,
    state_k,
    state_v,
    heads: tl.constexpr,
    value_heads: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
    size: tl.constexpr,
    key_block: tl.constexpr,
    value_block: tl.constexpr,
    precision: tl.constexpr,
):
    """One chunk, value head and block of keys. The formulas stand at engine.models.delta_rule.chunk_gradients."""
    parts: tl.constexpr = (key_width + key_block - 1) // key_block
    chunk, part = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    head = tl.program_id(1)
    first, stop = tl.load(bounds + 2 * chunk), tl.load(bounds + 2 * chunk + 1)
    # From here on every index is relative to the chunk and the head, so that 32 bits suffice.
    of_head = first * value_heads + head
    v += of_head * value_width
    do += of_head * value_width
    dv += of_head * value_width
    state = (chunk * value_heads + head) * key_width * value_width
    h += state
    dh += state
    row, count = tl.arange(0, size), (stop - first).to(tl.int32)
    keys = part * key_block + tl.arange(0, key_block)
    inside = row < count
    of_keys = inside[:, None] & (keys < key_width)[None, :]

    dq_ = tl.zeros([size, key_block], dtype=tl.float32)
    dk_ = tl.zeros([size, key_block], dtype=tl.float32)
    dw_ = tl.zeros([size, key_block], dtype=tl.float32)
    scores = tl.zeros([size, size], dtype=tl.float32)
    transposed = tl.zeros([size, size], dtype=tl.float32)
    at_end = tl.zeros([key_block], dtype=tl.float32)
    for start in range(0, value_width, value_block):
        values = start + tl.arange(0, value_block)
        at = row[:, None] * (value_heads * value_width) + values[None, :]
        of_values = inside[:, None] & (values < value_width)[None, :]
        v_ = tl.load(v + at, mask=of_values, other=0.0)
        do_ = tl.load(do + at, mask=of_values, other=0.0)
        dv_ = tl.load(dv + at, mask=of_values, other=0.0).to(v_.dtype)
        of_state = values[:, None] * state_v + keys[None, :] * state_k
        in_state = (values < value_width)[:, None] & (keys < key_width)[None, :]
        h_ = tl.load(h + of_state, mask=in_state, other=0.0)
        dh_ = tl.load(dh + of_state, mask=in_state, other=0.0)
        at_end += tl.sum(h_.to(tl.float32) * dh_.to(tl.float32), axis=0)
        scores = tl.dot(do_, tl.trans(v_), scores, input_precision=precision)
        transposed = tl.dot(v_, tl.trans(do_), transposed, input_precision=precision)
        dq_ = tl.dot(do_, h_.to(do_.dtype), dq_, input_precision=precision)
        dk_ = tl.dot(v_, dh_.to(v_.dtype), dk_, input_precision=precision)
        dw_ = tl.dot(dv_, h_.to(v_.dtype), dw_, input_precision=precision)

    out = of_head * key_width + row[:, None] * (value_heads * key_width) + keys[None, :]
    tl.store(dw + out, (-dw_).to(dw.dtype.element_ty), mask=of_keys)
    at = row[:, None] * (heads * key_width) + keys[None, :]
    at += (first * heads + head // (value_heads // heads)) * key_width
    q_ = tl.load(q + at, mask=of_keys, other=0.0)
    k_ = tl.load(k + at, mask=of_keys, other=0.0)
    decay = tl.load(g + of_head + row * value_heads, mask=inside, other=0.0)
    last = tl.load(g + of_head + (count - 1) * value_heads)
    dq_ *= (tl.exp2(decay) * scale)[:, None]
    dk_ *= tl.where(inside, tl.exp2(last - decay), 0.0)[:, None]
    ends = tl.sum(at_end) * tl.exp2(last) + tl.sum(dk_ * k_)
    # The exponent is masked, not the power: above the diagonal it would overflow.
    both = inside[:, None] & inside[None, :]
    seen = both & (row[:, None] >= row[None, :])
    within = tl.exp2(tl.where(seen, decay[:, None] - decay[None, :], float("-inf")))
    dq_ = tl.dot((scores * within * scale).to(k_.dtype), k_, dq_, input_precision=precision)
    sees = both & (row[:, None] <= row[None, :])
    across = tl.exp2(tl.where(sees, decay[None, :] - decay[:, None], float("-inf")))
    dk_ = tl.dot((transposed * across * scale).to(q_.dtype), q_, dk_, input_precision=precision)
    dg_ = tl.sum(dq_ * q_, axis=1) - tl.sum(dk_ * k_, axis=1)
    dg_ += tl.where(row == count - 1, ends, 0.0)
    tl.store(dq + out, dq_.to(dq.dtype.element_ty), mask=of_keys)
    tl.store(dk + out, dk_.to(dk.dtype.element_ty), mask=of_keys)
    tl.store(dg + part.to(tl.int64) * parts_stride + of_head + row * value_heads, dg_, mask=inside)


_BLOCK = {2: 64, 4: 32}
"""Keys and values of a block, by bytes of a number: two stages of its inputs fit the shared memory of any GPU."""


def fused_chunk_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    h: Tensor,
    dh: Tensor,
    w: Tensor,
    g: Tensor,
    dv: Tensor,
    scale: float,
    *,
    chunk_size: int = 64,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes what `engine.models.delta_rule.chunk_gradients` does; arguments and results are the same.

    Args:
        q, k, v, do, h, dh, w, g, dv, scale, chunk_size, state_v_first: See there; fp32 or 16-bit, g fp32.
        cu_seqlens: First tokens of packed documents and the number of tokens, (documents + 1,), for a batch of one.
            Each document's chunks begin at its start, and h and dh hold the chunks of one document after another.
    """
    batch, tokens, heads, keys = q.shape
    value_heads, values = v.shape[2:]
    q, k, v, do, dv, g, h, dh = (x.contiguous() for x in (q, k, v, do, dv, g, h, dh))
    bounds = (
        _chunk_bounds(batch, tokens, chunk_size, q.device)
        if cu_seqlens is None
        else _bounds_of_documents(cu_seqlens, chunk_size)
    )
    block = _BLOCK[max(q.element_size(), 2)]
    parts = triton.cdiv(keys, block)
    dq, dk = (x.new_empty(batch, tokens, value_heads, keys) for x in (q, k))
    dw = torch.empty_like(w, memory_format=torch.contiguous_format)
    dg = torch.empty((parts, batch, tokens, value_heads), dtype=torch.float32, device=q.device)
    state_k, state_v = (1, keys) if state_v_first else (values, 1)
    _chunk_kernel[(bounds.shape[0] * parts, value_heads)](
        q,
        k,
        v,
        do,
        dv,
        g,
        h,
        dh,
        dq,
        dk,
        dw,
        dg,
        bounds,
        scale,
        dg.stride(0),
        state_k,
        state_v,
        heads=heads,
        value_heads=value_heads,
        key_width=keys,
        value_width=values,
        size=chunk_size,
        key_block=block,
        value_block=block,
        precision="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
    )
    if heads != value_heads:
        dq, dk = (x.view(batch, tokens, heads, value_heads // heads, keys).sum(3) for x in (dq, dk))
    return dq, dk, dw, dg.sum(0)


@functools.lru_cache(maxsize=8)
def _chunk_bounds(batch: int, tokens: int, size: int, device: torch.device) -> Tensor:
    """Returns first and last + 1 token of each chunk among all rows of a batch, (batch * chunks, 2), int64."""
    first = torch.arange(0, tokens, size, device=device)
    bounds = torch.stack([first, (first + size).clamp_(max=tokens)], dim=1)
    rows = torch.arange(batch, device=device) * tokens
    return (rows[:, None, None] + bounds).view(-1, 2)


def _bounds_of_documents(cu_seqlens: Tensor, size: int) -> Tensor:
    """Returns first and last + 1 token of the chunks of packed documents, (chunks, 2), int64."""
    starts, stops = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    chunks = (stops - starts + size - 1) // size
    document = torch.repeat_interleave(chunks)
    within = torch.arange(document.shape[0], device=starts.device) - (chunks.cumsum(0) - chunks)[document]
    first = starts[document] + within * size
    return torch.stack([first, torch.minimum(first + size, stops[document])], dim=1)
