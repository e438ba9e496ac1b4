"""Stores hidden states unquantised, or block-wise in 8 or 4 bits (approximate; arXiv 2104.14129)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from engine.errors.planning import StreamPlanError

_BLOCK = 64


class Quantizer(ABC):
    """Encodes a tile (tokens, width) into components (tokens, component width), one row a token."""

    components: list[tuple[int, torch.dtype]]
    "Width and dtype of each component."

    @abstractmethod
    def encode(self, value: Tensor) -> Sequence[Tensor]:
        """Encodes a tile (tokens, width) into one (tokens, component width) for each of `components`."""

    @abstractmethod
    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """Decodes the components, each (tokens, component width), into the tile (tokens, width)."""


class Plain(Quantizer):
    """Stores the model's own dtype, 16 bits as a rule; exact."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.components = [(width, dtype)]

    def encode(self, value: Tensor) -> Sequence[Tensor]:
        """See Quantizer."""
        return [value]

    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """See Quantizer."""
        return parts[0]


class EightBit(Quantizer):
    """8-bit dynamic quantisation of bitsandbytes (arXiv 2110.02861), with one fp32 scale for each block of 64."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        _check_width(width)
        self._dtype = dtype
        self.components = [(width, torch.uint8), (width // _BLOCK, torch.float32)]

    def encode(self, value: Tensor) -> Sequence[Tensor]:
        """See Quantizer."""
        from bitsandbytes.functional import quantize_blockwise

        codes, state = quantize_blockwise(value.contiguous(), blocksize=_BLOCK)
        return [codes, state.absmax.view(value.shape[0], -1)]

    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """See Quantizer."""
        from bitsandbytes.functional import QuantState, create_dynamic_map, dequantize_blockwise

        codes, absmax = parts
        state = QuantState(
            absmax=absmax.reshape(-1),
            code=create_dynamic_map().to(codes.device),
            blocksize=_BLOCK,
            dtype=self._dtype,
        )
        value: Tensor = dequantize_blockwise(codes.contiguous(), state)
        return value.view(codes.shape)


class FourBit(Quantizer):
    """NF4 (arXiv 2305.14314), with one fp32 scale for each block of 64."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        _check_width(width)
        self._width, self._dtype = width, dtype
        self.components = [(width // 2, torch.uint8), (width // _BLOCK, torch.float32)]

    def encode(self, value: Tensor) -> Sequence[Tensor]:
        """See Quantizer."""
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(value.contiguous(), blocksize=_BLOCK, quant_type="nf4")
        return [codes.view(value.shape[0], -1), state.absmax.view(value.shape[0], -1)]

    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """See Quantizer."""
        from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

        codes, absmax = parts
        shape = torch.Size((codes.shape[0], self._width))
        state = QuantState(
            absmax=absmax.reshape(-1),
            shape=shape,
            code=get_4bit_type("nf4", device=codes.device),
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=self._dtype,
        )
        value: Tensor = dequantize_4bit(codes.reshape(-1, 1), state)
        return value.view(shape)


def _check_width(width: int) -> None:
    if width % _BLOCK:
        raise StreamPlanError(
            f"activation_bits below 16 needs a hidden size that is a multiple of {_BLOCK}, not {width}"
        )


def quantizer_for(bits: Literal[16, 8, 4], width: int, dtype: torch.dtype) -> Quantizer:
    """Returns the quantizer of `activation_bits`.

    Raises:
        StreamPlanError: fewer than 16 bits, and the width is not a multiple of 64.
    """
    kinds: dict[int, type[Plain | EightBit | FourBit]] = {16: Plain, 8: EightBit, 4: FourBit}
    return kinds[bits](width, dtype)
