"""Finds the stacked matrices of a layer's experts, and holds them in 4 bits.

transformers holds the matrices of a layer's experts in 3-D parameters, which bitsandbytes' layers do not reach.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

CHOSEN_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "experts_per_token",
)
"""Names in configurations of the number of experts that a token passes through."""
_STACKS = ("gate_up_proj", "up_proj", "down_proj")
"""Names of the stacked matrices, as transformers' experts interface has them."""
BLOCK, _SCALE_BLOCK = 64, 256
"""Weights of one scale, and scales of one scale of theirs: bitsandbytes' own (QLoRA, arXiv 2305.14314, section 3)."""


def stacks_of(module: Any) -> dict[str, nn.Parameter]:
    """The stacked matrices of a module of experts, by name; none for other modules.

    A module counts if it keeps the contract of transformers' experts interface, by which one forward serves them all.
    """
    if not all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "_apply_gate")):
        return {}
    own = dict(module.named_parameters(recurse=False))
    found = {name: own[name] for name in _STACKS if name in own}
    wanted = {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}
    return found if found.keys() == wanted else {}


def experts_modules(layer: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yields each module of experts in a layer with the outermost adapter around it, or itself where there is none."""
    inside: dict[int, nn.Module] = {}
    for part in layer.modules():
        base = getattr(part, "base_layer", None)
        if isinstance(base, nn.Module):
            inside[id(base)] = part
    for module in layer.modules():
        if stacks_of(module):
            outer = module
            while id(outer) in inside:
                outer = inside[id(outer)]
            yield module, outer


def expert_count(module: nn.Module) -> int:
    """Number of experts in a module of them."""
    return int(cast("Any", module).num_experts)


def quantised_stack(experts: Iterator[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Quantises a stack of matrices to NF4 with double quantisation, one expert after the other.

    The stack never exists in 16 bits. Codes and scales are those of bitsandbytes for the stack as one tensor.

    Args:
        experts: Matrices in order, each of shape[1:], on the device that quantises.
        shape: Shape of the stack, (experts, ., .); a whole number of blocks of 64 weights is in each expert.
        dtype: What they are dequantised to.

    Returns:
        bitsandbytes' Params4bit with the state of the whole stack, on the device of the matrices.

    Raises:
        ValueError: an expert is not a whole number of blocks.
    """
    from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise
    from bitsandbytes.nn import Params4bit

    if shape[1] * shape[2] % BLOCK:
        raise ValueError(f"an expert of {shape[1]} × {shape[2]} weights is no whole number of blocks of {BLOCK}")
    codes, scales = [], []
    for expert in experts:
        code, state = quantize_4bit(expert.contiguous(), blocksize=BLOCK, quant_type="nf4")
        codes.append(code)
        scales.append(state.absmax)
    joined = torch.cat(scales)
    offset = joined.mean()
    small, of_scales = quantize_blockwise(joined - offset, blocksize=_SCALE_BLOCK)
    state = QuantState(
        absmax=small,
        shape=torch.Size(shape),
        dtype=dtype,
        blocksize=BLOCK,
        code=get_4bit_type("nf4", device=small.device),
        quant_type="nf4",
        offset=offset,
        state2=of_scales,
    )
    return Params4bit(
        torch.cat(codes),
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        bnb_quantized=True,
    )


def is_packable_stack(model: nn.Module, name: str) -> bool:
    """Whether a parameter is a stack of experts' matrices, each a whole number of blocks."""
    path, _, own = name.rpartition(".")
    stack = stacks_of(model.get_submodule(path)).get(own)
    if stack is None:
        return False
    state = getattr(stack, "quant_state", None)
    shape = stack.shape if state is None else state.shape
    return math.prod(shape[1:]) % BLOCK == 0


def dequantised_blocks(codes: Tensor, state: Any, scales: Tensor, shape: Sequence[int]) -> Tensor:
    """Dequantises whole blocks of a stack into a shape.

    bitsandbytes' kernel for CPUs takes each row to begin a block, so that a row here is one block.
    """
    from bitsandbytes.functional import QuantState, dequantize_4bit

    rows = torch.Size((math.prod(shape) // state.blocksize, state.blocksize))
    flat = QuantState(
        absmax=scales,
        shape=rows,
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
    found: Tensor = dequantize_4bit(codes, flat)
    return found.view(tuple(shape))


@functools.cache
def _standin(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of one stored number, whose shape an adapter is made for."""
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


def unpacked_shapes(model: nn.Module) -> Any:
    """Within the context, 4-bit stacks have the shape of their matrices, as PEFT reads it to attach an adapter."""
    return _UnpackedShapes(model)


class _UnpackedShapes:
    def __init__(self, model: nn.Module) -> None:
        self._packed = [
            (module, name, stack)
            for module in model.modules()
            for name, stack in stacks_of(module).items()
            if hasattr(stack, "quant_state")
        ]

    def __enter__(self) -> None:
        for module, name, stack in self._packed:
            state: Any = stack.quant_state
            shape = _standin(tuple(state.shape), state.dtype, stack.device)
            setattr(module, name, nn.Parameter(shape, requires_grad=False))

    def __exit__(self, *_: object) -> None:
        for module, name, stack in self._packed:
            setattr(module, name, stack)
