"""Computes experts with frozen weights and an adapter for each expert.

transformers holds the matrices of a layer's experts stacked in 3-D parameters. PEFT's LoRA on such a parameter
(`target_parameters`) adds scale · B_e A_e to every expert's matrix W_e before the module runs, in memory as large as
the stack, and its gradient as well. Here y = x W_eᵀ + scale (x A_eᵀ) B_eᵀ for the rows x that chose expert e, with
the same trained matrices: neither the sum nor its gradient exists. Rows are sorted by expert, and each product is one
grouped product (engine.models.grouped_products).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from engine.models.expert_stacks import (
    BLOCK,
    dequantised_blocks,
    expert_count,
    experts_modules,
    quantised_stack,
    stacks_of,
)
from engine.models.grouped_products import ALIGNMENT, Groups, grouped_outer, grouped_product

_WIDTH = 2 * ALIGNMENT
"""Multiple of which adapters' factors are padded: what tensor cores multiply at once."""


class FrozenStack(Protocol):
    """Stacked weights that may be resident only while their decoder layer is entered."""

    def matrices(self) -> Tensor:
        """Returns (experts, outputs, inputs), in the activations' dtype; no gradient."""


@dataclass(frozen=True)
class StackFactors:
    """An adapter of all experts, cast to the dtype of its products once a layer and pass.

    In 16 bits a factor is its rounded value and the rounding's remainder, as in engine.streaming.lora_linear.
    """

    a: Tensor
    "(experts, rank', inputs); rank' is the rank, or twice the rank padded with zeros to what the kernel takes."
    b: Tensor
    "(experts, outputs, rank'), with the scale in it."
    rank: int
    scale: float
    halves: bool

    @classmethod
    def of(cls, a: Tensor, b: Tensor, experts: int, scale: float, dtype: torch.dtype) -> StackFactors:
        """Casts PEFT's matrices, a of (experts · rank, inputs) and b of (outputs, rank · experts)."""
        with torch.no_grad():
            by_a = a.view(experts, -1, a.shape[1])
            by_b = b.view(b.shape[0], -1, experts).permute(2, 0, 1) * scale
            rank, halves = by_a.shape[1], dtype != a.dtype
            if not halves:
                return cls(by_a, by_b.contiguous(), rank, scale, halves)
            width = -(-2 * rank // _WIDTH) * _WIDTH
            wide_a = a.new_zeros((experts, width, a.shape[1]), dtype=dtype)
            wide_b = a.new_zeros((experts, b.shape[0], width), dtype=dtype)
            wide_a[:, :rank], wide_b[:, :, :rank] = by_a, by_b
            wide_a[:, rank : 2 * rank] = by_a - wide_a[:, :rank].to(a.dtype)
            wide_b[:, :, rank : 2 * rank] = by_b - wide_b[:, :, :rank].to(a.dtype)
            return cls(wide_a, wide_b, rank, scale, halves)

    def project(self, x: Tensor, factor: Tensor, groups: Groups) -> Tensor:
        """Computes x factorᵀ of shape (rows, rank'), x of (rows, inputs); for halves their sum, side by side."""
        product = grouped_product(x, factor.transpose(1, 2), groups)
        if not self.halves:
            return product
        both = torch.zeros_like(product)
        total = product[:, : self.rank] + product[:, self.rank : 2 * self.rank]
        both[:, : self.rank] = total
        both[:, self.rank : 2 * self.rank] = total
        return both


class _Frozen(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: FrozenStack, groups: Groups) -> Tensor:
        ctx.stack, ctx.groups = stack, groups
        return grouped_product(x, stack.matrices().transpose(1, 2), groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grouped_product(grad.contiguous(), ctx.stack.matrices(), ctx.groups), None, None


class _Adapted(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stack: FrozenStack,
        groups: Groups,
        lora_a: Tensor,
        lora_b: Tensor,  # noqa: ARG004 - an input so that it receives its gradient
        factors: StackFactors,
    ) -> Tensor:
        inner = factors.project(x, factors.a, groups)
        out = grouped_product(x, stack.matrices().transpose(1, 2), groups)
        out += grouped_product(inner, factors.b.transpose(1, 2), groups)
        ctx.save_for_backward(x, inner)
        ctx.stack, ctx.groups, ctx.factors, ctx.adapter_dtype = stack, groups, factors, lora_a.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner = ctx.saved_tensors
        factors: StackFactors = ctx.factors
        groups, rank, grad = ctx.groups, factors.rank, grad.contiguous()
        g_inner = factors.project(grad, factors.b.transpose(1, 2), groups)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grouped_product(grad, ctx.stack.matrices(), groups)
            grad_x += grouped_product(g_inner, factors.a, groups)
        of_a = grouped_outer(g_inner, x, groups)[:, :rank].to(ctx.adapter_dtype)
        of_b = grouped_outer(grad, inner, groups)[:, :, :rank].to(ctx.adapter_dtype).mul_(factors.scale)
        grad_a = of_a.reshape(-1, of_a.shape[2])
        grad_b = of_b.permute(1, 2, 0).reshape(of_b.shape[1], -1)
        return grad_x, None, None, grad_a, grad_b, None


class _Dispatch(Function):
    """Copies each token once for each of its experts, in order of the experts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, routes: _Routes) -> Tensor:
        ctx.routes = routes
        return x[routes.tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.routes.of_tokens(grad).sum(1), None


class _Combine(Function):
    """Sums each token's outputs times their routing weights."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, routes: _Routes) -> Tensor:
        ctx.save_for_backward(y, weights)
        ctx.routes = routes
        # A product sums the rows of a token without a copy of them times their weights.
        return torch.bmm(weights.to(y.dtype).unsqueeze(1), routes.of_tokens(y)).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weights = ctx.saved_tensors
        routes: _Routes = ctx.routes
        of_rows = grad[routes.tokens]
        grad_weights = None
        if ctx.needs_input_grad[1]:
            grad_weights = torch.linalg.vecdot(of_rows, y)[routes.places].view(weights.shape).to(weights.dtype)
        return of_rows.mul_(weights.reshape(-1)[routes.order].unsqueeze(1)), grad_weights, None


class _Routes:
    """Where each of a token's experts stands among the rows that are sorted by expert.

    Args:
        chosen: Experts of each token, (tokens, k).
        experts: Number of experts.
    """

    def __init__(self, chosen: Tensor, experts: int) -> None:
        self._count = chosen.shape[1]
        by_row, self.order = torch.sort(chosen.reshape(-1), stable=True)
        "Place among (tokens · k) of each row."
        self.by_row = by_row
        self.tokens = self.order // self._count
        self.places = torch.empty_like(self.order).scatter_(
            0, self.order, torch.arange(self.order.shape[0], device=chosen.device)
        )
        "Row of each place."
        numbers = torch.arange(experts, device=chosen.device, dtype=by_row.dtype)
        self.groups = Groups(torch.searchsorted(by_row, numbers, right=True).to(torch.int32))

    def of_tokens(self, rows: Tensor) -> Tensor:
        """Gathers rows, (rows, width), by their tokens, (tokens, k, width)."""
        return rows[self.places].view(-1, self._count, rows.shape[1])


@dataclass(frozen=True)
class StackAdapter:
    """LoRA of one stack: PEFT's wrapper and the name of its adapter."""

    wrapper: Any
    name: str

    @property
    def trained(self) -> tuple[Tensor, Tensor]:
        """A, (experts · rank, inputs), and B, (outputs, rank · experts)."""
        return self.wrapper.lora_A[self.name].weight, self.wrapper.lora_B[self.name].weight

    def factors(self, experts: int, dtype: torch.dtype) -> StackFactors:
        """Casts the matrices to the dtype of their products."""
        a, b = self.trained
        return StackFactors.of(a, b, experts, self.wrapper.scaling[self.name], dtype)


class Stack:
    """One frozen stack of matrices, in 16 bits, wider, or 4 bits."""

    def __init__(self, module: nn.Module, name: str, adapter: StackAdapter | None) -> None:
        self._module, self._name, self.adapter = module, name, adapter
        self.expanded: Tensor | None = None
        "The matrices as they are stored, dequantised; None where that is not kept."
        self.factors: StackFactors | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter, whose data are codes in 4 bits."""
        found: nn.Parameter = getattr(self._module, self._name)
        return found

    @property
    def quant_state(self) -> Any:
        """Quantisation state in 4 bits, None otherwise."""
        return getattr(self.parameter, "quant_state", None)

    def dequantised(self) -> Tensor:
        """Returns the matrices in the shape that they are stored in."""
        return dequantised_blocks(self.parameter.data, self.quant_state, self._scales(), self.quant_state.shape)

    def _scales(self) -> Tensor:
        """Dequantises the scales of the blocks, fp32."""
        from bitsandbytes.functional import dequantize_blockwise

        state = self.quant_state
        found: Tensor = state.absmax
        return dequantize_blockwise(found, state.state2) + state.offset if state.nested else found

    def matrices(self) -> Tensor:
        """See FrozenStack."""
        stored = self.expanded
        if stored is None:
            stored = self.parameter.data if self.quant_state is None else self.dequantised()
        return stored.transpose(1, 2) if cast("Any", self._module).is_transposed else stored

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the products."""
        state = self.quant_state
        return self.parameter.dtype if state is None else cast("torch.dtype", state.dtype)

    def make_factors(self) -> None:
        """Casts the adapter, if there is one."""
        if self.adapter is not None:
            self.factors = self.adapter.factors(expert_count(self._module), self.dtype)

    def product(self, x: Tensor, groups: Groups) -> Tensor:
        """Multiplies rows x, (rows, inputs), by their experts' matrices, (rows, outputs)."""
        adapter, experts = self.adapter, expert_count(self._module)
        packed = self.quant_state is not None and self.expanded is None
        few = packed and not torch.is_grad_enabled() and x.shape[0] < experts
        if adapter is None or adapter.wrapper.disable_adapters:
            return self._of_few(x, groups) if few else cast("Tensor", _Frozen.apply(x, self, groups))  # type: ignore[no-untyped-call]
        factors = self.factors or adapter.factors(experts, self.dtype)
        if few:
            inner = factors.project(x, factors.a, groups)
            return self._of_few(x, groups) + grouped_product(inner, factors.b.transpose(1, 2), groups)
        a, b = adapter.trained
        arguments = (x, self, groups, a, b, factors)
        return cast("Tensor", _Adapted.apply(*arguments))  # type: ignore[no-untyped-call]

    def _of_few(self, x: Tensor, groups: Groups) -> Tensor:
        """Multiplies fewer rows than there are experts, and dequantises those alone that a row chose."""
        found = [x[rows] @ self._one(expert).T for expert, rows in groups.slices]
        return torch.cat(found)

    def _one(self, expert: int) -> Tensor:
        """Dequantises the matrix of one expert, (outputs, inputs)."""
        state = self.quant_state
        shape, block = state.shape[1:], state.blocksize
        size = math.prod(shape)
        codes, scales = self.parameter.data[expert * size // 2 :][: size // 2], self._scales()
        found = dequantised_blocks(codes, state, scales[expert * size // block :][: size // block], shape)
        return found.T if cast("Any", self._module).is_transposed else found


class FrozenExperts:
    """A module of experts whose stacks are frozen; `forward` replaces its own, or that of the adapters around it.

    Args:
        module: The module of experts.
        adapters: LoRA by the name of its stack.
    """

    def __init__(self, module: nn.Module, adapters: Mapping[str, StackAdapter]) -> None:
        self._module: Any = module
        self.stacks = {name: Stack(module, name, adapters.get(name)) for name in stacks_of(module)}

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Computes Σ_j weight_j · expert_j(x) for each token, by the contract of transformers' experts interface.

        Args:
            hidden_states: (tokens, hidden).
            top_k_index: Experts of each token, (tokens, k).
            top_k_weights: Their weights, (tokens, k).

        Returns:
            (tokens, hidden), in hidden_states' dtype.
        """
        kind = hidden_states.device.type
        with nullcontext() if hidden_states.is_meta else torch.autocast(kind, enabled=False):
            found = self._mixed(hidden_states, top_k_index, top_k_weights)
        return found.to(hidden_states.dtype)

    def _mixed(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        module, routes = self._module, _Routes(top_k_index, expert_count(self._module))
        first, last = (self.stacks[name] for name in self.stacks)
        x = cast("Tensor", _Dispatch.apply(hidden_states.to(first.dtype), routes))  # type: ignore[no-untyped-call]
        up = self._biased(first.product(x, routes.groups), "gate_up_proj" if module.has_gate else "up_proj", routes)
        del x
        inner = module._apply_gate(up) if module.has_gate else module.act_fn(up)
        del up
        y = self._biased(last.product(inner, routes.groups), "down_proj", routes)
        del inner
        if getattr(module, "has_post_expert_norm", False):
            y = module.post_expert_norm(y)
        return cast("Tensor", _Combine.apply(y, top_k_weights, routes))  # type: ignore[no-untyped-call]

    def _biased(self, rows: Tensor, name: str, routes: _Routes) -> Tensor:
        if not self._module.has_bias:
            return rows
        bias: Tensor = getattr(self._module, f"{name}_bias")
        return rows + bias[routes.by_row]


def frozen_experts(layer: nn.Module) -> Iterator[tuple[FrozenExperts, nn.Module]]:
    """Yields the experts of a layer whose stacks and biases are frozen, each with the module that is called for it.

    Those that PEFT alone can compute (several adapters, merged ones) are left out.
    """
    for module, outer in experts_modules(layer):
        trained = any(p.requires_grad for p in module.parameters(recurse=False))
        adapters = _adapters(outer)
        if not trained and adapters is not None:
            yield FrozenExperts(module, adapters), outer


def _adapters(outer: Any) -> dict[str, StackAdapter] | None:
    """The adapters of a chain of wrappers; None where one of them is not a plain one."""
    found: dict[str, StackAdapter] = {}
    while hasattr(outer, "parameter_name") and hasattr(outer, "lora_A"):
        active = [name for name in outer.active_adapters if name in outer.lora_A]
        if len(active) > 1 or outer.merged:
            return None
        if active:
            found[outer.parameter_name] = StackAdapter(outer, active[0])
        outer = outer.base_layer
    return found if stacks_of(outer) else None


def use_frozen_experts(model: nn.Module) -> int:
    """Makes every module of frozen experts compute as `FrozenExperts` does, for good; returns how many there are.

    Experts in 4 bits need it, because transformers' own forward cannot read them.
    """
    count = 0
    for experts, outer in list(frozen_experts(model)):
        outer.__dict__["forward"] = experts.forward
        count += 1
    return count


def quantise_experts(layer: nn.Module, home: torch.device, quantise_on: torch.device | None = None) -> None:
    """Replaces the stacks of a layer's experts by 4-bit ones, and makes the experts compute with them.

    Args:
        layer: A decoder layer without adapters. Stacks whose experts are no whole number of blocks stay as they are.
        home: Device of the codes and scales.
        quantise_on: Device that quantises; None for the stacks' own.
    """
    for module, _ in list(experts_modules(layer)):
        for name, stack in stacks_of(module).items():
            if not hasattr(stack, "quant_state") and stack[0].numel() % BLOCK == 0:
                device = quantise_on or stack.device
                found = quantised_stack((e.to(device) for e in stack.data), tuple(stack.shape), stack.dtype)
                setattr(module, name, found.to(home))
        use_frozen_experts(module)
