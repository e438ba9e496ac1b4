"""Attention sinks: each head has one more key with a score of its own and no value (arXiv 2309.17453, section 3).

With l = log Σ exp(scores) over the real keys and the sink's score s, a row's output and logsumexp become

    l* = log(e^l + e^s)      o* = o e^(l - l*)

A kernel's backward that is given o* and l* computes the gradients of q, k and v as they are, because its probabilities
are e^(score - l*), and a key without a value adds nothing to dO·O. The sink's own is ds = -Σ e^(s - l*) (dO·o*).
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_sinks(out: Tensor, logsumexp: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Adds a sink to rows of attention.

    Args:
        out: (1, heads, queries, head_dim).
        logsumexp: (1, heads, queries), fp32 or wider.
        sinks: Score of each head's sink, (heads,).

    Returns:
        Both with the sink, in the same shapes and dtypes.
    """
    wide = torch.logaddexp(logsumexp, sinks.to(logsumexp.dtype)[None, :, None])
    kept = torch.exp(logsumexp - wide).unsqueeze(-1)
    return (out.to(kept.dtype) * kept).to(out.dtype), wide


def sink_gradient(grad_out: Tensor, out: Tensor, logsumexp: Tensor, sinks: Tensor) -> Tensor:
    """Computes the gradient of the sinks' scores, (heads,), fp32 or wider, from these rows.

    Args:
        grad_out: Gradient of out, (1, heads, queries, head_dim).
        out, logsumexp, sinks: Results and argument of `with_sinks`.
    """
    of_sink = torch.exp(sinks.to(logsumexp.dtype)[None, :, None] - logsumexp)
    return -(of_sink * (grad_out.to(logsumexp.dtype) * out.to(logsumexp.dtype)).sum(-1)).sum((0, 2))
