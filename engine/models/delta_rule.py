"""Computes the gradients of a chunked gated delta rule inside its chunks, in torch.

engine.models.delta_rule_kernel computes the same in one kernel, and is compared with this before its first use.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

_CHUNKS = 64
"""Chunks whose gradients are computed at once. The fp32 temporaries of one operation are 32 KB a chunk and head."""


def chunk_gradients(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of a chunked gated delta rule (arXiv 2412.06464, section 3.3) inside its chunks.

    With G the decay within a chunk in log2, Γ = exp2(G_i − G_j) for i >= j, and S the state at a chunk's start:

        output    o  = scale · (exp2(G) q Sᵀ + (q kᵀ ∘ Γ) v)
        state     S' = exp2(G_last) S + Σ exp2(G_last − G) k vᵀ
        values    v  = u − w S

    Shapes stand beside the names.

    Args:
        q, k: (batch, tokens, heads, key_width).
        v: Values after the delta rule, (batch, tokens, value_heads, value_width); value heads share q and k evenly.
        do: Gradient of o, as v.
        h: S of each chunk, (batch, chunks, value_heads, key_width, value_width).
        dh: Gradient of S' of each chunk, as h.
        w: (batch, tokens, value_heads, key_width).
        g: G, (batch, tokens, value_heads), fp32.
        dv: Gradient of v, as v.
        scale: Factor of the output.
        chunk_size: Tokens of a chunk; the last may be shorter.
        state_v_first: Whether h and dh have the value width before the key width.

    Returns:
        dq and dk as q and k, dw as w, and dg, the gradient of the decay's natural logarithm, (batch, tokens, value
        heads), fp32.
    """
    batch, tokens, heads, _ = q.shape
    value_heads = v.shape[2]
    found: list[tuple[Tensor, ...]] = []
    step = _CHUNKS * chunk_size
    for start in range(0, tokens, step):
        rows = slice(start, min(start + step, tokens))
        chunks = slice(start // chunk_size, -(-rows.stop // chunk_size))
        before, after = (x[:, chunks].transpose(-1, -2) if state_v_first else x[:, chunks] for x in (h, dh))
        of_tokens = {"q": q, "k": k, "v": v, "do": do, "w": w, "g": g, "dv": dv}
        parts = {name: x[:, rows] for name, x in of_tokens.items()}
        found.append(_some_chunks(**parts, h=before, dh=after, scale=scale, size=chunk_size))
    dq, dk, dw, dg = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    if heads != value_heads:
        dq, dk = (x.view(batch, tokens, heads, value_heads // heads, -1).sum(3) for x in (dq, dk))
    return dq, dk, dw, dg


def _some_chunks(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    w: Tensor,
    g: Tensor,
    dv: Tensor,
    h: Tensor,
    dh: Tensor,
    scale: float,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes `chunk_gradients` for whole chunks; q and k are per value head in the results."""
    batch, tokens, heads, _ = q.shape
    value_heads, dtype = v.shape[2], q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    missing = -tokens % size

    def chunked(x: Tensor) -> Tensor:
        """Views (batch, tokens, heads, width) as (batch, chunks, heads, size, width)."""
        x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        return x.view(batch, -1, size, *x.shape[2:]).transpose(2, 3)

    def joined(x: Tensor) -> Tensor:
        return x.transpose(2, 3).reshape(batch, -1, value_heads, x.shape[-1])[:, :tokens]

    repeats = value_heads // heads
    q_, k_ = (chunked(x if repeats == 1 else x.repeat_interleave(repeats, dim=2)) for x in (q, k))
    v_, do_, dv_ = chunked(v), chunked(do), chunked(dv)
    decay = g.to(wide)
    if missing:  # no decay after the last token
        decay = torch.cat([decay, decay[:, -1:].expand(-1, missing, -1)], dim=1)
    decay = decay.view(batch, -1, size, value_heads).transpose(2, 3)
    last = decay[..., -1:]
    at_end = (h.to(wide) * dh.to(wide)).sum((-1, -2)) * torch.exp2(last[..., 0])
    h, dh = h.to(dtype), dh.to(dtype)
    dw = -(dv_.to(dtype) @ h.transpose(-1, -2))
    dq = (do_ @ h.transpose(-1, -2)).to(wide).mul_((torch.exp2(decay) * scale).unsqueeze(-1))
    dk = (v_ @ dh.transpose(-1, -2)).to(wide).mul_(torch.exp2(last - decay).unsqueeze(-1))
    at_end = at_end + (dk * k_).sum((-1, -2))
    between = decay.unsqueeze(-1) - decay.unsqueeze(-2)
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    within = torch.exp2(between.masked_fill_(later, -torch.inf)).mul_(scale)
    ds = within.mul_((do_ @ v_.transpose(-1, -2)).to(wide)).to(dtype)
    dq += ds @ k_
    dk += ds.transpose(-1, -2) @ q_
    dg = (dq * q_).sum(-1) - (dk * k_).sum(-1)
    dg = dg.transpose(2, 3).reshape(batch, -1, value_heads)
    # The state's own decay counts at the last token of each chunk.
    ends = torch.arange(size - 1, dg.shape[1], size, device=q.device).clamp_(max=tokens - 1)
    dg.index_add_(1, ends, at_end)
    return joined(dq).to(dtype), joined(dk).to(dtype), joined(dw).to(w.dtype), dg[:, :tokens]
