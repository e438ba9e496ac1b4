"""Attention whose scores s are bounded to c·tanh(s / c), as in Gemma 2 (arXiv 2408.00118, section 2).

torch's flash kernels do not bound scores, so this is torch's own arithmetic, a few rows of queries at a time. It is
exact on any device, and several times slower than a flash kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, repeat_heads, sum_groups

_SCORES = 2**24
"""Scores that exist at once."""


class CappedScores(AttentionBackend):
    """Computes attention with bounded scores; keys and values may differ in width.

    Args:
        cap: Bound c of the scores.
    """

    name = "capped"

    def __init__(self, cap: float) -> None:
        self._cap = cap

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:  # noqa: ARG002
        """See AttentionBackend. Supports everything."""
        return None

    def _rows(self, q: Tensor, k: Tensor) -> Iterator[slice]:
        at_once = max(1, _SCORES // (q.shape[1] * k.shape[2]))
        for start in range(0, q.shape[2], at_once):
            yield slice(start, min(start + at_once, q.shape[2]))

    def _scores(self, q: Tensor, k: Tensor, rows: slice, scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
        """Returns tanh(s / c), and the bounded scores with -inf where a query sees no key; fp32 or wider."""
        wide = torch.promote_types(q.dtype, torch.float32)
        squashed = torch.tanh((q[:, :, rows] @ k.transpose(2, 3)).to(wide) * (scale / self._cap))
        scores = squashed * self._cap
        if causal:
            queries = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
            unseen = torch.arange(k.shape[2], device=q.device) > queries
            scores = scores.masked_fill(unseen, -math.inf)
        return squashed, scores

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        outs, sums = [], []
        for rows in self._rows(q, k):
            _, scores = self._scores(q, k, rows, scale, causal=causal)
            logsumexp = torch.logsumexp(scores, dim=-1)
            outs.append(torch.exp(scores - logsumexp.unsqueeze(-1)).to(v.dtype) @ v)
            sums.append(logsumexp)
        return torch.cat(outs, 2), torch.cat(sums, 2)

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See AttentionBackend."""
        kv_heads = k.shape[1]
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        wide = logsumexp.dtype
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        for rows in self._rows(q, k):
            squashed, scores = self._scores(q, k, rows, scale, causal=causal)
            p = torch.exp(scores - logsumexp[:, :, rows].unsqueeze(-1))
            g = grad_out[:, :, rows]
            dv += p.to(g.dtype).transpose(2, 3) @ g
            of_rows = (g.to(wide) * out[:, :, rows].to(wide)).sum(-1, keepdim=True)
            of_scores = p * ((g @ v.transpose(2, 3)).to(wide) - of_rows) * (1 - squashed * squashed) * scale
            of_scores = of_scores.to(q.dtype)
            dq[:, :, rows] = (of_scores @ k).to(wide)
            dk += of_scores.transpose(2, 3) @ q[:, :, rows]
        found = dq, sum_groups(dk, kv_heads), sum_groups(dv, kv_heads)
        return found[0].to(q.dtype), found[1].to(k.dtype), found[2].to(v.dtype)
