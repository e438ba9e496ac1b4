"""Stands in for the kernels of engine.models.recurrent_kernels and engine.models.fused, holding what they hold.

Each allocates what its kernel does, in the kernel's order, so that tensors are counted as they come and go on a GPU.
The orders are those of flash-linear-attention 0.6 (fla/ops/gated_delta_rule/chunk.py, fla/modules/causal_conv1d/ops.py,
fla/modules/norm/fused_norm_gate.py) and liger-kernel 0.8 (ops/rms_norm.py).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from engine.models.fused import is_rms_norm
from engine.models.recurrent_kernels import is_gated_norm
from engine.models.recurrent_mixers import Call, RecurrentMixer, recurrent_mixers, routed
from engine.streaming.mixer_cache import MixerCache

_CHUNK = 64
"Tokens of a chunk of the gated delta rule."
_CONVOLVED = 64
"Tokens of a block of the convolution, which each have a part of its weight's gradient."


@contextlib.contextmanager
def kernels_stand_in(layer: nn.Module, *, mixers: bool = True, norms: bool = True) -> Iterator[None]:
    """Within it, stand-ins serve a decoder layer.

    Args:
        layer: The layer.
        mixers: Whether they serve its recurrent mixers, which get a cache, and the norms with gates in them.
        norms: Whether they serve its RMSNorms.
    """
    served = recurrent_mixers([layer])[0] if mixers else ()
    with contextlib.ExitStack() as stack:
        for mixer in served:
            module = sys.modules[type(mixer.module).__module__]
            stack.enter_context(_replaced(module, "causal_conv1d_fn", _convolve))
            stack.enter_context(_replaced(module, "torch_chunk_gated_delta_rule", _rule))
        gated = {type(part) for part in layer.modules() if is_gated_norm(part)} if mixers else ()
        plain = {type(part) for part in layer.modules() if is_rms_norm(part)} if norms else ()
        for norm in gated:
            stack.enter_context(_replaced(norm, "forward", _gated_norm))
        for norm in plain:
            stack.enter_context(_replaced(norm, "forward", _norm_or(norm.forward)))
        stack.enter_context(routed(served, _WithCache()))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    own = vars(owner).get(name)
    if own is None or own is stand_in:  # of several mixers, the first has replaced it
        yield
        return
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, own)


class _WithCache:
    """See MixerRunner. Gives a mixer the cache of a tile."""

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:  # noqa: ARG002
        return call(x, MixerCache())


# --- the gated delta rule ------------------------------------------------------------------------------------------


def _rule(q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _Rule.apply(q, k, v, g, beta)  # type: ignore[no-untyped-call]
    return found


class _Rule(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        rows = q.shape[:2]
        q, q_norms = torch.empty_like(q), q.new_empty((*rows, q.shape[2]), dtype=torch.float32)
        k, k_norms = torch.empty_like(k), k.new_empty((*rows, k.shape[2]), dtype=torch.float32)
        decay = g.new_empty(g.shape, dtype=torch.float32)
        solved = k.new_empty((*rows, v.shape[2], _CHUNK))
        w, u = k.new_empty((*rows, v.shape[2], k.shape[3])), torch.empty_like(v)
        states, values = _states(k, v), torch.empty_like(u)
        state = k.new_empty((q.shape[0], v.shape[2], k.shape[3], v.shape[3]), dtype=torch.float32)
        out = torch.empty_like(v)
        del w, u, states, values
        ctx.save_for_backward(q, q_norms, k, k_norms, v, decay, beta, solved, g)
        return out, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dstate: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        q, _, k, _, v, decay, beta, _, g = ctx.saved_tensors
        do = do.contiguous()
        dq, dk, dv, dbeta, dg = _chunks_backward(q, k, v, decay, beta, do)
        dq, dk = torch.empty_like(dq), torch.empty_like(dk)  # through the norms of queries and keys
        return dq, dk, dv, dg.to(g.dtype), dbeta.to(beta.dtype)


def _chunks_backward(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, do: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, heads = q.shape[:2], v.shape[2]
    of_keys = (*rows, heads, k.shape[3])
    w, u = k.new_empty(of_keys), torch.empty_like(v)
    states, values = _states(k, v), torch.empty_like(v)
    dv = torch.empty_like(do)
    dstates, dv = torch.empty_like(states), torch.empty_like(dv)
    dq, dk, dw = q.new_empty(of_keys), k.new_empty(of_keys), torch.empty_like(w)
    parts = decay.new_empty((-(-k.shape[3] // 64), *decay.shape))
    if heads != q.shape[2]:
        dq, dk = torch.empty_like(q), torch.empty_like(k)
    dg = torch.empty_like(decay)
    del parts
    dk2, dv, dbeta, dg2 = k.new_empty(of_keys), torch.empty_like(dv), torch.empty_like(beta), torch.empty_like(dg)
    if heads != q.shape[2]:
        dk2 = torch.empty_like(k)
    dg = torch.empty_like(dg)
    del w, u, states, values, dstates, dw, dk2, dg2
    return dq, dk, dv, dbeta, dg


def _states(k: Tensor, v: Tensor) -> Tensor:
    """Allocates the state at the start of each chunk."""
    return k.new_empty((k.shape[0], -(-k.shape[1] // _CHUNK), v.shape[2], k.shape[3], v.shape[3]))


# --- convolution and norms -----------------------------------------------------------------------------------------


def _convolve(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    found: Tensor = _Convolution.apply(x.transpose(1, 2), weight)  # type: ignore[no-untyped-call]
    return found.transpose(1, 2)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        before_activation, dx = torch.empty_like(x), torch.empty_like(x)
        parts = weight.new_empty((-(-x.shape[1] // _CONVOLVED), *weight.shape), dtype=torch.float32)
        del before_activation, parts, dy
        return dx, None


def _norm_or(own: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the stand-in of a class of norms, of which those without weights compute their own."""

    def norm(module: nn.Module, x: Tensor) -> Tensor:
        weight = getattr(module, "weight", None)
        found: Tensor = own(module, x) if weight is None else _Norm.apply(x, weight)  # type: ignore[no-untyped-call]
        return found

    return norm


def _gated_norm(module: nn.Module, x: Tensor, gate: Tensor) -> Tensor:
    found: Tensor = _GatedNorm.apply(x, gate, module.weight)  # type: ignore[no-untyped-call]
    return found


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG004
        x = x.contiguous()
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - its size is x's
        return torch.empty_like(ctx.saved_tensors[0]), None


class _GatedNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG004
        x, gate = x.contiguous(), gate.contiguous()
        ctx.save_for_backward(x, gate, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gate, _ = ctx.saved_tensors
        dy = dy.contiguous()
        found = torch.empty_like(x), torch.empty_like(gate), None
        del dy
        return found
