"""Dequantises the scales of a decoder layer's 4-bit weights in one batch.

bitsandbytes keeps one scale for each block of weights, and stores the scales themselves in 8 bits ("double
quantisation", QLoRA, arXiv 2305.14314, section 3). Dequantised matrix by matrix they cost two kernel launches each,
and on a fast GPU short contexts are bound by launches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class BlockScales:
    """8-bit scales of several 4-bit matrices, packed into one tensor.

    Each matrix's state keeps a view of its own scales.

    Args:
        states: bitsandbytes' QuantState of each matrix, `joinable`.
    """

    def __init__(self, states: Sequence[Any]) -> None:
        from bitsandbytes.functional import QuantState

        first = states[0].state2
        self._sizes = [state.absmax.numel() for state in states]
        self._packed = torch.cat([state.absmax.flatten() for state in states])
        self._block = int(first.blocksize)
        self._state = QuantState(
            absmax=torch.cat([state.state2.absmax.flatten() for state in states]),
            code=first.code,
            blocksize=self._block,
            dtype=torch.float32,
        )
        offsets = torch.stack([state.offset.float() for state in states])
        blocks = torch.tensor([size // self._block for size in self._sizes], device=offsets.device)
        self._offsets = offsets.repeat_interleave(blocks).unsqueeze(1)
        self._plain = []
        for state, own in zip(states, self._packed.split(self._sizes), strict=True):
            state.absmax = own
            plain = copy.copy(state)
            plain.nested, plain.state2, plain.offset, plain.absmax = False, None, None, None
            self._plain.append(plain)

    @staticmethod
    def joinable(states: Sequence[Any]) -> bool:
        """Whether all scales are in 8 bits, share one code, and no block of them would span two matrices."""
        if len(states) < 2 or not all(state is not None and state.nested for state in states):
            return False
        first = states[0].state2
        return all(
            state.state2.blocksize == first.blocksize
            and state.absmax.numel() % first.blocksize == 0
            and state.absmax.device == states[0].absmax.device
            and torch.equal(state.state2.code, first.code)
            for state in states
        )

    def unpacked(self) -> list[Any]:
        """Returns a state for each matrix with its scales dequantised, for `dequantize_4bit`.

        The states are valid until the next call.
        """
        from bitsandbytes.functional import dequantize_blockwise

        scales: Tensor = dequantize_blockwise(self._packed, self._state)
        scales.view(-1, self._block).add_(self._offsets)
        for plain, own in zip(self._plain, scales.split(self._sizes), strict=True):
            plain.absmax = own
        return self._plain

    def drop(self) -> None:
        """Frees the scales that `unpacked` made."""
        for plain in self._plain:
            plain.absmax = None
