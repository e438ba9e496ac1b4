"""A frozen linear layer with its LoRA adapter as one operation.

PEFT computes y = x Wᵀ + s (x Aᵀ) Bᵀ as separate modules: an fp32 copy of every input, a scaled copy and a sum of
every output. Here the low-rank products are added by the matrix product itself (addmm) and the backward keeps
only x and x Aᵀ. Adapters stay fp32 master copies, and their gradients come in fp32.

In 16-bit arithmetic each factor is split into its rounded value and the rounding's remainder, concatenated as
x [A_high; A_low]ᵀ. At a rank of 16 the product is bound by reading x, so the split costs next to nothing. With A and B
merely rounded, gradients are measurably further from fp32 than PEFT's (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, kw_only=True)
class LoraMatrices:
    """Trained matrices of one adapter, and the dtype of its products."""

    a: Tensor
    "(rank, in_features)."
    b: Tensor
    "(out_features, rank)."
    scale: float
    dtype: torch.dtype


@dataclass(frozen=True)
class LoraFactors:
    """An adapter cast to the dtype of its products, once a layer and pass instead of once a tile."""

    a: Tensor
    "(rank', in_features); rank' is twice the rank in 16 bits."
    b: Tensor
    "(out_features, rank'), with the scale in it."
    rank: int
    scale: float

    @classmethod
    def of(cls, adapters: Sequence[LoraMatrices]) -> list[LoraFactors]:
        """Casts adapters of one shape, scale and dtype, whose updates are scale B A."""
        scale, dtype = adapters[0].scale, adapters[0].dtype
        with torch.no_grad():
            a = _split(torch.stack([adapter.a for adapter in adapters]), dtype, 1)
            b = _split(torch.stack([adapter.b for adapter in adapters]) * scale, dtype, 2)
        rank = adapters[0].a.shape[0]
        return [cls(own_a, own_b, rank, scale) for own_a, own_b in zip(a, b, strict=True)]


def _split(factor: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    high = factor.to(dtype)
    if high.dtype == factor.dtype:
        return high
    return torch.cat([high, (factor - high).to(dtype)], dim)


def _project(x: Tensor, factor: Tensor, rank: int) -> Tensor:
    """Computes x factorᵀ in x's dtype, (n, rank).

    For a factor in halves the result is the halves' sum, repeated side by side, (n, 2 rank).
    """
    product = _wide_product(x, factor.T)
    if factor.shape[0] == rank:
        return product.to(x.dtype)
    halves, both = product.view(-1, 2, rank), x.new_empty((product.shape[0], 2, rank))
    # One kernel adds, rounds and writes both copies, because short tiles are bound by kernel launches.
    torch.add(halves[:, :1].expand_as(both), halves[:, 1:].expand_as(both), out=both)
    return both.view(-1, 2 * rank)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Computes a b, (n, k) by (k, m), without rounding the sums of 16-bit matrices to 16 bits."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda or a.is_meta:  # where bytes are counted without numbers, they are a GPU's
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


class FrozenWeight(Protocol):
    """A weight that is resident (dequantised or fetched) only while its decoder layer is entered.

    The backward pass reads it again, so that a graph may outlive the memory that its forward pass read.
    """

    @property
    def weight(self) -> Tensor:
        """The weight, (out_features, in_features), in the activations' dtype; no gradient."""


def lora_product(x: Tensor, weight: Tensor, bias: Tensor | None, factors: LoraFactors) -> Tensor:
    """Computes `lora_linear` without a graph; shapes as there."""
    flat = x.reshape(-1, x.shape[-1])
    inner = _project(flat, factors.a, factors.rank)
    if flat.device.type == "cpu":  # its products of a few rows are fast in this form alone
        out = F.linear(flat, weight, bias).addmm_(inner, factors.b.T)
    else:
        # The adapter's product comes first: the large matmul adds to it as it writes, and rounds the sum once.
        out = inner @ factors.b.T if bias is None else torch.addmm(bias, inner, factors.b.T)
        out.addmm_(flat, weight.T)
    return out.view(*x.shape[:-1], -1)


class _LoraLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        frozen: FrozenWeight,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,  # noqa: ARG004 - an input so that it receives its gradient
        factors: LoraFactors,
        output_needed: bool,
    ) -> Tensor:
        weight = frozen.weight
        flat = x.reshape(-1, x.shape[-1])
        inner = _project(flat, factors.a, factors.rank)
        # Not a view of what is computed: layers may change it in place (OLMo clips its projections so).
        out = flat.new_empty((*x.shape[:-1], weight.shape[0]))
        if output_needed:
            rows = out.view(-1, weight.shape[0])
            # The adapter's product comes first: the large matmul adds to it as it writes, and rounds the sum once.
            if bias is None:
                torch.mm(inner, factors.b.T, out=rows)
            else:
                torch.addmm(bias, inner, factors.b.T, out=rows)
            rows.addmm_(flat, weight.T)
        ctx.save_for_backward(flat, inner)
        ctx.frozen, ctx.factors, ctx.adapter_dtype = frozen, factors, lora_a.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner = ctx.saved_tensors
        factors: LoraFactors = ctx.factors
        g = grad.reshape(-1, grad.shape[-1])
        g_inner = _project(g, factors.b.T, factors.rank)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (g_inner @ factors.a).addmm_(g, ctx.frozen.weight).view(*grad.shape[:-1], -1)
        rank = factors.rank
        grad_a = _wide_product(g_inner[:, :rank].T, flat).to(ctx.adapter_dtype)
        grad_b = _wide_product(g.T, inner[:, :rank]).to(ctx.adapter_dtype).mul_(factors.scale)
        return grad_x, None, None, grad_a, grad_b, None, None


def lora_linear(
    x: Tensor,
    frozen: FrozenWeight,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    factors: LoraFactors,
    *,
    output_needed: bool = True,
) -> Tensor:
    """Computes x Wᵀ + bias + scale (x Aᵀ) Bᵀ, with W and bias frozen (LoRA, arXiv 2106.09685, section 4.1).

    Args:
        x: (..., in_features).
        frozen: W, (out_features, in_features).
        bias: (out_features,) or None; no gradient.
        lora_a: (rank, in_features).
        lora_b: (out_features, rank).
        factors: The two matrices cast to x's dtype.
        output_needed: False leaves the output's values undefined, for callers that need only gradients.

    Returns:
        (..., out_features), in x's dtype.
    """
    arguments = (x, frozen, bias, lora_a, lora_b, factors, output_needed)
    out: Tensor = _LoraLinear.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


def frozen_linear(x: Tensor, frozen: FrozenWeight, bias: Tensor | None) -> Tensor:
    """Computes x Wᵀ + bias with W frozen; the bias may be trained.

    Args:
        x: (..., in_features).
        frozen: W, (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        (..., out_features).
    """
    frozen_bias = None if bias is None or bias.requires_grad else bias
    out: Tensor = _FrozenLinear.apply(x, frozen, frozen_bias)  # type: ignore[no-untyped-call]
    return out if bias is None or frozen_bias is not None else out + bias


class _FrozenLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenWeight, bias: Tensor | None) -> Tensor:
        ctx.frozen = frozen
        return F.linear(x, frozen.weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.matmul(grad, ctx.frozen.weight), None, None
