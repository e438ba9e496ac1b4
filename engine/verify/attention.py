"""Proof of the attention kernels."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.attention.select import select_backend, usable_backends
from engine.verify.measure import mib, peak_bytes, relative_error
from engine.verify.proof import Bench, demand

_HEADS, _KV_HEADS, _SIZE = 4, 2, 64


def flash_attention(bench: Bench) -> str:
    """The chosen kernel matches the definition's output and gradients, in memory linear in the length."""
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    backend = select_backend(bench.device, dtype, _HEADS, _KV_HEADS, _SIZE)
    usable = [found.name for found in usable_backends(bench.device, dtype, _SIZE)]
    found, expected = _flash(backend, *_tensors(bench, dtype, 512)), _plain(*_tensors(bench, dtype, 512))
    error = relative_error(found, expected)
    demand(error < (2e-2 if bench.on_gpu else 1e-5), f"{backend.name} differs by {error:.1e} from the definition")
    peaks: dict[str, list[int]] = {}
    for name, way in (("flash", partial(_flash, backend)), ("plain", _plain)):
        peaks[name] = []
        for length in (1024, 2048):
            tensors = _tensors(bench, dtype, length)
            peaks[name].append(peak_bytes(bench.device, partial(way, *tensors)))
    growth = {name: after / before for name, (before, after) in peaks.items()}
    demand(growth["flash"] < 2.3 < 3.3 < growth["plain"], f"memory at twice the length × {growth['flash']:.1f}")
    return (
        f"{backend.name} of {', '.join(usable)}: output and gradients within {error:.1e} of the definition; "
        f"at 2,048 tokens {mib(peaks['flash'][1])} instead of {mib(peaks['plain'][1])}, "
        f"× {growth['flash']:.1f} for twice the length"
    )


def _tensors(bench: Bench, dtype: torch.dtype, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def draw(heads: int) -> Tensor:
        # Token-major in memory, as the projections write them.
        drawn = torch.randn((1, length, heads, _SIZE), generator=generator)
        return drawn.to(bench.device, dtype).transpose(1, 2)

    return draw(_HEADS), draw(_KV_HEADS), draw(_KV_HEADS), draw(_HEADS)


def _flash(backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor) -> dict[str, Tensor]:
    scale = _SIZE**-0.5
    out, logsumexp = backend.forward(q, k, v, causal=True, scale=scale)
    dq, dk, dv = backend.backward(grad_out, q, k, v, out, logsumexp, causal=True, scale=scale)
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def _plain(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor) -> dict[str, Tensor]:
    """Computes attention by its definition, in fp32."""
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    groups = _HEADS // _KV_HEADS
    scores = leaves[0] @ leaves[1].repeat_interleave(groups, 1).transpose(2, 3) * _SIZE**-0.5
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    out = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ leaves[2].repeat_interleave(groups, 1)
    dq, dk, dv = torch.autograd.grad(out, leaves, grad_out.float())
    return {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}
